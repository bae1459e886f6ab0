#!/usr/bin/env bash
# Tests the containers for real: builds both images, looks into them, and trains the federation of docker-compose.yml in them. Meanwhile some of
# it is killed, it is upgraded, gets certificates of a new authority, and is restored from a backup, by the commands of README.md.
# It needs a Docker engine that runs, docker-compose 1.29 or the plugin `docker compose`, curl and python3. Where no registry can be reached it
# also needs root, debootstrap and what pip of this machine can reach: then base images and wheels are made here. It leaves nothing running.
#
#   deploy/test-containers.sh            all of it
#   deploy/test-containers.sh --short    the images, and a federation that is killed and ends; in half the time
#   deploy/test-containers.sh --images   the images alone; what is built is there for the next call
#
# Exit status 69: nothing was tested, because no container can be made or run here.
set -euo pipefail
cd "$(dirname "$0")/.."

is_short="" ends_at_images=""
case "${1:-}" in
    "") ;;
    --short) is_short=1 ;;
    --images) is_short=1 ends_at_images=1 ;;
    *) echo "test-containers.sh: the option must be --short or --images, got $1" >&2; exit 64 ;;
esac
readonly PROJECT="choral-test-$$" FEDERATION="site-0 site-1 site-2" PATIENCE_SECONDS=900 WHEELS_PORT=18931
export CHORAL_VERSION=test CHORAL_GRPC_PORT="" CHORAL_HTTP_PORT="" CHORAL_API_PORT=""
scratch=$(mktemp -d)
# Many times as many rounds as the demo has: it is over before somebody can kill anything.
rounds=300
[ -z "$is_short" ] || rounds=150
export CHORAL_RUN="$scratch/run.yaml"
sed "s/^rounds: .*/rounds: $rounds/" deploy/digits.yaml > "$CHORAL_RUN"
wheel_server=""

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
unavailable() { say "not tested: $*" >&2; exit 69; }
compose() {
    if docker compose version > /dev/null 2>&1; then docker compose --project-name "$PROJECT" "$@"; else docker-compose --project-name "$PROJECT" "$@"; fi
}
container() { compose ps --quiet "$1"; }
state() { docker inspect --format "$1" "$2"; }

clean_up() {
    status=$?
    if [ "$status" -ne 0 ] && [ "$status" -ne 69 ]; then compose logs --no-color --tail 40 >&2 || true; fi
    docker rm --force "$PROJECT-edge" > /dev/null 2>&1 || true
    compose --profile api down --volumes > /dev/null 2>&1 || true
    docker volume rm "$PROJECT-edge" > /dev/null 2>&1 || true
    docker network rm "$PROJECT-probe" > /dev/null 2>&1 || true
    if [ -n "$wheel_server" ]; then kill "$wheel_server" 2> /dev/null || true; fi
    rm -rf "$scratch"
}
trap clean_up EXIT

# await WHAT COMMAND...: until the command succeeds, but no longer than PATIENCE_SECONDS.
await() {
    local what=$1 deadline=$((SECONDS + PATIENCE_SECONDS))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "waited $PATIENCE_SECONDS s for $what"
        sleep 1
    done
    say "$what"
}

# --- images ------------------------------------------------------------------------------------------------------------------------------

can_pull() { docker image inspect "$1" > /dev/null 2>&1 || timeout 60 docker pull --quiet "$1" > /dev/null 2>&1; }

# make_base NAME PACKAGES COMMAND: an image of Debian's own packages, unless an earlier call made it.
make_base() {
    docker image inspect "$1" > /dev/null 2>&1 && return
    debootstrap --variant=minbase --include="$2" bookworm "$scratch/base" > "$scratch/debootstrap.log" || { tail -n 5 "$scratch/debootstrap.log" >&2; return 1; }
    rm -rf "$scratch"/base/var/cache/apt/archives/*.deb "$scratch"/base/var/lib/apt/lists/*
    # As Docker's own image of Python has one, which ours must not.
    printf '#!/bin/sh\n' | install -m 755 /dev/stdin "$scratch/base/usr/local/bin/pip3"
    tar --create --directory "$scratch/base" . | docker import --change "$3" - "$1" > /dev/null || return 1
    rm -rf "$scratch/base"
}

serve_wheels() {
    python3 -c 'import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
parts = project["project"]["dependencies"] + [
    name for role in ("client", "server", "torch") for name in project["project"]["optional-dependencies"][role] if not name.startswith("choral")
]
print(*project["build-system"]["requires"], *parts, sep="\n")' > "$scratch/wanted.txt"
    # For redis, where Debian's Python is older than 3.11.3.
    echo async-timeout >> "$scratch/wanted.txt"
    python3 -m pip download --quiet --only-binary :all: --dest "$scratch/wheels" --constraint deploy/pins.txt --requirement "$scratch/wanted.txt" \
        2> "$scratch/pip.log" || { cat "$scratch/pip.log" >&2; return 1; }
    # Always the same port: the address is part of what the engine keeps built layers by.
    python3 -u -m http.server --bind 127.0.0.1 --directory "$scratch/wheels" "$WHEELS_PORT" > "$scratch/http.log" 2>&1 &
    wheel_server=$!
    until grep -qs 'http://' "$scratch/http.log"; do kill -0 "$wheel_server"; sleep 0.1; done
}

arguments=()
if can_pull "${BASE_IMAGE:=python:3.11-slim-bookworm}" && can_pull "${REDIS_IMAGE:=redis:7-bookworm}"; then
    say "base images: $BASE_IMAGE, $REDIS_IMAGE"
else
    BASE_IMAGE=choral-test-python REDIS_IMAGE=choral-test-redis
    { make_base "$BASE_IMAGE" python3,python3-venv,ca-certificates 'CMD ["python3"]' && make_base "$REDIS_IMAGE" redis-server 'CMD ["redis-server"]'; } \
        || unavailable "no base image can be pulled or made"
    say "base images: of debootstrap, because no registry can be reached"
fi
export REDIS_IMAGE
{ docker network create "$PROJECT-probe" && docker run --rm --network "$PROJECT-probe" "$BASE_IMAGE" python3 -c pass; } > "$scratch/probe.log" 2>&1 \
    || { cat "$scratch/probe.log" >&2; unavailable "no container runs here"; }
if ! curl --silent --fail --max-time 20 --output /dev/null https://download.pytorch.org/whl/cpu/; then
    serve_wheels
    arguments=(--network host --build-arg PIP_NO_INDEX=1 --build-arg "PIP_FIND_LINKS=http://127.0.0.1:$WHEELS_PORT/")
    say "wheels: of this machine's pip, because torch's index cannot be reached"
fi
# build ROLE TAG MOST_MB ARGUMENTS...
build() {
    local image="choral-$1:$2" size
    docker build --quiet --file deploy/Dockerfile --target "$1" --tag "$image" --build-arg "BASE_IMAGE=$BASE_IMAGE" \
        "${arguments[@]}" "${@:4}" . > "$scratch/build.log" 2>&1 || { tail -n 20 "$scratch/build.log" >&2; fail "building $image"; }
    size=$(docker image inspect --format '{{.Size}}' "$image")
    say "$image: $((size / 1000000)) MB"
    [ "$size" -le "${3}000000" ] || fail "$image must be at most $3 MB"
}
build client test 1200
build coordinator test 400
[ -n "$is_short" ] || build coordinator test-torch 1200 --build-arg COORDINATOR_TORCH=1
torch_of() { docker run --rm --network none --entrypoint python "$1" -c 'import importlib.util; print("some" if importlib.util.find_spec("torch") else "none")'; }

# --- what is in them ---------------------------------------------------------------------------------------------------------------------

release=$(python3 -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
for role in coordinator client; do
    label=$(docker image inspect --format '{{index .Config.Labels "org.opencontainers.image.version"}}' "choral-$role:test")
    [ "$label" = "$release" ] || fail "choral-$role must be labelled with the release $release, got $label"
    # As root, or folders that only root can read would seem empty.
    docker run --rm --user 0 --network none --entrypoint python --volume "$PWD/deploy/contents.py:/contents.py:ro" "choral-$role:test" /contents.py / \
        || fail "choral-$role holds what no image should"
    ! docker image inspect --format '{{json .Config.Env}}' "choral-$role:test" | grep -iE 'pip_|token|password|secret' || fail "choral-$role keeps settings of its build"
    [ "$(docker image inspect --format '{{.Config.User}}' "choral-$role:test")" = 10001:10001 ] || fail "choral-$role must not run as root"
done
[ "$(torch_of choral-coordinator:test)" = none ] || fail "the coordinator must be without torch"
[ -n "$is_short" ] || [ "$(torch_of choral-coordinator:test-torch)" = some ] || fail "COORDINATOR_TORCH=1 must bring torch"
say "images: no tests, secrets, caches or build tools"
[ -z "$ends_at_images" ] || exit 0

# --- the federation ----------------------------------------------------------------------------------------------------------------------

compose up --detach --no-build > "$scratch/up.log" 2>&1 || { cat "$scratch/up.log" >&2; fail "docker compose up"; }
coordinator=$(container coordinator)
say "the federation is up"
for service in redis coordinator $FEDERATION; do
    id=$(container "$service")
    [ "$(docker exec "$id" id -u)" = 10001 ] || fail "$service must not run as root"
    if docker exec "$id" touch /etc/written 2> /dev/null; then fail "$service can write to its root file system"; fi
    [ "$(state '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}' "$id")" = \
        'true [ALL] [no-new-privileges:true]' ] || fail "$service must be confined"
done
say "every service is without root, capabilities and a file system to write to"

docker cp --quiet "$coordinator:/certificates/coordinator/authority.pem" "$scratch/authority.pem" 2> /dev/null \
    || docker cp "$coordinator:/certificates/coordinator/authority.pem" "$scratch/authority.pem" > /dev/null
token=$(docker exec "$coordinator" choral token create test --role operator --days 1 2> /dev/null)
port() { docker port "$coordinator" "$1" | head -n 1 | sed 's/.*://'; }
api() { curl --silent --fail --max-time 10 --cacert "$scratch/authority.pem" --header "Authorization: Bearer $token" "https://localhost:$(port 8080)$1"; }
# run_field NAME: of the one run.
run_field() { api /api/v1/runs | python3 -c 'import json, sys; print(json.load(sys.stdin)[0][sys.argv[1]])' "$1" 2> /dev/null; }
has_rounds() { [ "$(run_field round_number || echo 0)" -ge "$1" ]; }
is_state() { [ "$(run_field state || true)" = "$1" ]; }
is_healthy() { [ "$(state '{{.State.Health.Status}}' "$1")" = healthy ]; }

await "3 rounds are committed" has_rounds 3
[ "$(curl --silent --output /dev/null --write-out '%{http_code}' --cacert "$scratch/authority.pem" "https://localhost:$(port 8080)/api/v1/runs")" = 401 ] \
    || fail "the REST API must ask for a token"
api / | grep -qi '<title>' || fail "the dashboard must be served"

# while_it_runs WHAT: notes the round in `before`.
while_it_runs() {
    before=$(run_field round_number)
    is_state running || fail "the run must be in progress before $1"
    say "after round $before: $1"
}
goes_on() { await "2 more rounds are committed" has_rounds $((before + 2)); }

while_it_runs "the coordinator's container is killed"
docker kill "$coordinator" > /dev/null
docker start "$coordinator" > /dev/null
goes_on

# What operators do with a federation in the course of time.
lives_on() {
    for role in coordinator client; do
        printf 'FROM choral-%s:test\nLABEL org.opencontainers.image.version=next\n' "$role" | docker build --quiet --tag "choral-$role:test-next" - > /dev/null 2>&1
    done
    export CHORAL_VERSION=test-next
    while_it_runs "both images are upgraded"
    compose up --detach --no-build > "$scratch/up.log" 2>&1 || { cat "$scratch/up.log" >&2; fail "the upgrade"; }
    [ "$(container coordinator)" != "$coordinator" ] || fail "the coordinator's container must be another one"
    coordinator=$(container coordinator)
    goes_on

    # certify COMMANDS: before certificates are made, in the authority's folder.
    names="\$HOSTS --client site-0 --client site-1 --client site-2"
    certify() {
        compose run --rm -T certificates "cd /certificates/authority; $1; choral certificates /certificates $names > /dev/null" > "$scratch/run.log" 2>&1 \
            || { cat "$scratch/run.log" >&2; fail "certificates"; }
        # shellcheck disable=SC2086 # a list of words
        compose restart coordinator $FEDERATION > /dev/null 2>&1
        docker exec "$coordinator" cat /certificates/coordinator/authority.pem > "$scratch/authority.pem"
    }
    while_it_runs "a second authority is trusted"
    old=$(cat "$scratch/authority.pem")
    certify 'choral certificates /tmp/next --host coordinator > /dev/null; cp certificate.pem old.pem; mv /tmp/next/authority new
             cat old.pem new/certificate.pem > certificate.pem'
    goes_on
    while_it_runs "it signs all certificates"
    certify 'cat new/certificate.pem old.pem > certificate.pem; cp new/key.pem key.pem'
    goes_on
    while_it_runs "the first authority is forgotten"
    certify 'cp new/certificate.pem certificate.pem; rm -r new old.pem'
    goes_on
    [ "$(cat "$scratch/authority.pem")" != "$old" ] && [ "$(grep -c BEGIN "$scratch/authority.pem")" = 1 ] || fail "the second authority must be the only one"

    volumes="redis coordinator authority coordinator-certificates client-certificates"
    while_it_runs "a backup is taken, and all is lost but the clients' volumes"
    compose stop coordinator redis > /dev/null 2>&1
    for volume in $volumes; do
        docker run --rm --user 0 --volume "${PROJECT}_$volume:/volume:ro" --entrypoint tar choral-coordinator:test --create --directory /volume . > "$scratch/$volume.tar"
    done
    compose down > /dev/null 2>&1
    for volume in $volumes; do docker volume rm "${PROJECT}_$volume" > /dev/null; done
    # Not by `compose up --no-start`: 1.29 then waits for the certificates, which nobody makes.
    for volume in $volumes; do
        docker volume create --label "com.docker.compose.project=$PROJECT" --label "com.docker.compose.volume=$volume" "${PROJECT}_$volume" > /dev/null
        docker run --rm --interactive --user 0 --volume "${PROJECT}_$volume:/volume" --entrypoint tar choral-coordinator:test --extract --same-owner --directory /volume < "$scratch/$volume.tar"
    done
    compose up --detach --no-build > "$scratch/up.log" 2>&1 || { cat "$scratch/up.log" >&2; fail "the restored federation"; }
    coordinator=$(container coordinator)
    await "the restored federation answers" has_rounds "$before"
    goes_on
}
[ -n "$is_short" ] || lives_on

while_it_runs "the client site-1 is killed"
victim=$(container site-1)
# Everything in it but its init: the engine brings the container back, as after a crash.
docker exec "$victim" /bin/sh -c 'kill -9 -1' || true
await "the run has finished" is_state finished
[ "$(state '{{.RestartCount}}' "$victim")" -ge 1 ] || fail "site-1 must have been started again"
await "site-1 is healthy again" is_healthy "$victim"

run=$(run_field run_id)
api "/api/v1/runs/$run/model" > "$scratch/model.safetensors"
docker run --rm --network none --user "$(id -u):$(id -g)" --entrypoint python --volume "$scratch/model.safetensors:/model.safetensors:ro" choral-client:test -c \
    'from safetensors.torch import load_file; print("       model:", sum(t.numel() for t in load_file("/model.safetensors").values()), "numbers")' \
    || fail "the model must be one that can be loaded"
rounds=$(run_field round_number)
accuracy=$(api "/api/v1/runs/$run/rounds/$rounds" | python3 -c 'import json, sys; print(json.load(sys.stdin)["metrics"]["accuracy"])')
python3 -c 'import sys; sys.exit(float(sys.argv[1]) < 0.85)' "$accuracy" || fail "the model's accuracy must be at least 0.85, got $accuracy"
say "the model after round $rounds has an accuracy of $accuracy"
if [ -n "$is_short" ]; then say "all is well, as far as --short looks"; exit; fi

# --- REST in a process of its own, while the coordinator is away ---------------------------------------------------------------------------

compose --profile api up --detach --no-build api > "$scratch/up.log" 2>&1 || { cat "$scratch/up.log" >&2; fail "the profile api"; }
replica=$(compose --profile api ps --quiet api)
await "the API replica is healthy" is_healthy "$replica"
docker stop "$coordinator" > /dev/null
shown=$(curl --silent --fail --max-time 10 --cacert "$scratch/authority.pem" --header "Authorization: Bearer $token" \
    "https://localhost:$(docker port "$replica" 8080 | head -n 1 | sed 's/.*://')/api/v1/runs/$run" | python3 -c 'import json, sys; print(json.load(sys.stdin)["state"])')
[ "$shown" = finished ] || fail "the API replica must show the run while the coordinator is away, got $shown"
docker start "$coordinator" > /dev/null
say "an API replica shows the run while the coordinator is away"

# --- an edge machine, by the one line of README.md -----------------------------------------------------------------------------------------

compose run --rm -T certificates \
    'choral certificates /certificates $HOSTS --client edge-1 > /dev/null
     tar --create --directory /certificates/clients authority.pem edge-1.pem edge-1-key.pem' > "$scratch/edge-1.tar" 2> "$scratch/run.log" \
    || { cat "$scratch/run.log" >&2; fail "a certificate for an edge machine"; }
mkdir "$scratch/edge"
tar --extract --same-owner --file "$scratch/edge-1.tar" --directory "$scratch/edge"
docker run --detach --name "$PROJECT-edge" --network host --init --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
    --restart unless-stopped --volume "$PROJECT-edge:/var/lib/choral" --volume "$scratch/edge:/certificates/clients:ro" choral-client:test \
    join "localhost:$(port 7070)" --name edge-1 --data digits,blocks=5 --tls-ca /certificates/clients/authority.pem \
    --tls-cert /certificates/clients/edge-1.pem --tls-key /certificates/clients/edge-1-key.pem > /dev/null
edge_is_there() { api /api/v1/clients | python3 -c 'import json, sys; sys.exit(not any(c["name"] == "edge-1" and c["is_connected"] for c in json.load(sys.stdin)))'; }
await "an edge machine has joined through the published port" edge_is_there

say "all is well"
