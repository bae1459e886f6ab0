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
{{- if .Values.redis.enabled -}}
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
