{{- define "choral.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "choral.labels" -}}
{{ include "choral.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "choral.selector" -}}
app.kubernetes.io/name: choral
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "choral.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{ .Values.image.repository }}{{ if hasPrefix "sha256:" $tag }}@{{ else }}:{{ end }}{{ $tag }}
{{- end }}

{{/* The secret with the address of the store, its password in it. */}}
{{- define "choral.storeSecret" -}}
{{- if and .Values.redis.enabled .Values.redis.externalSecretName -}}
{{ fail "redis.enabled must be false when redis.externalSecretName names another one." }}
{{- else if .Values.redis.enabled -}}
{{ include "choral.name" . }}-redis
{{- else -}}
{{ required "redis.externalSecretName must name a secret with the key store when redis.enabled is false." .Values.redis.externalSecretName }}
{{- end -}}
{{- end }}

{{- define "choral.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "choral.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "choral.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .storageClass }}
storageClassName: {{ . | quote }}
{{- end }}
resources:
  requests: {storage: {{ .size | quote }}}
{{- end }}

{{- define "choral.probes" -}}
startupProbe:
  httpGet: {path: {{ . }}, port: http, scheme: HTTPS}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: {{ . }}, port: http, scheme: HTTPS}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: {{ . }}, port: http, scheme: HTTPS}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end }}

{{- define "choral.environment" -}}
- {name: CHORAL_STORE, value: "file:/secrets/store"}
{{- with .Values.ingress.proxies }}
- {name: FORWARDED_ALLOW_IPS, value: {{ join "," . | quote }}}
{{- end }}
{{- end }}

{{/* Names and the store. */}}
{{- define "choral.egress" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- if .Values.redis.enabled }}
- ports: [{port: 6379}]
  to:
    - podSelector:
        matchLabels: {{- include "choral.selector" . | nindent 10 }}
          app.kubernetes.io/component: redis
{{- else }}
- ports: [{port: {{ .Values.redis.externalPort }}}]
{{- end }}
{{- end }}
