# One file for both flavours; docker-bake.hcl holds the targets and says which arguments there are.
# Stages: base -> wheels -> server, and weights beside them, so that neither the wheels' layer nor the weights' layer
# is rebuilt because of the other, and a change in bringup/ rebuilds neither.
# Frontend: BuildKit's own (no "syntax" line), so that a build needs no registry beyond its base image.

ARG FLAVOUR=cpu
# The digest is that of the tag; any Debian or Ubuntu with Python 3.11 (cpu) or 3.11-3.13 (gpu) can be the base.
ARG CPU_BASE=debian:bookworm-20260803-slim@sha256:abd67ffcfa541b485a3dff59865ab629aa048a6c613e639d36e7456b0b229241
ARG CUDA_BASE=nvidia/cuda:13.0.3-base-ubuntu24.04@sha256:7c7413a56200486f71f181cad9310f6fd31b6bb21816ade15fc9c1e1e927a5c1

FROM ${CPU_BASE} AS base-cpu
ENV BRINGUP_FLAVOUR=cpu

FROM ${CUDA_BASE} AS base-gpu
ENV BRINGUP_FLAVOUR=gpu \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# What the server needs from the distribution, and its user.
# A C compiler and Python's headers: Triton and Inductor compile at run time. libnuma: vLLM's CPU extension does not
# load without it. openssh-server: for pods, which have no other way in; the entry point starts it only when it is given
# a public key. The versions are those of the base's release.
# hadolint ignore=DL3006
FROM base-${FLAVOUR} AS base
ARG FLAVOUR
# hadolint ignore=DL3008
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    --mount=type=cache,id=bringup-apt-${FLAVOUR},target=/var/cache/apt,sharing=locked \
    --mount=type=tmpfs,target=/var/lib/apt/lists \
    set -eu; export DEBIAN_FRONTEND=noninteractive; \
    set -- -q -o APT::Keep-Downloaded-Packages=true -o Acquire::Retries=3; \
    if [ -s /run/secrets/ca.crt ]; then set -- "$@" -o Acquire::https::CaInfo=/run/secrets/ca.crt; fi; \
    apt-get "$@" update; \
    apt-get "$@" install -y --no-install-recommends \
        ca-certificates g++ gcc libc6-dev libnuma1 openssh-server python3 python3-dev tini; \
    rm -f /etc/ssh/ssh_host_*; \
    rm -rf /var/log/apt /var/log/dpkg.log /var/log/alternatives.log /var/cache/ldconfig/aux-cache
# The command `bringup` is for whoever works in the container.
# Ubuntu's images have a user of their own at uid 1000. Ours has no password and is not locked, so that a key may log in;
# bash begins a session with the container's environment (bringup/inside/ssh.py writes the file): first thing in
# bash.bashrc, which returns early for commands, and in profile.d, for a login shell sets a PATH of its own.
# hadolint ignore=SC2016
RUN set -eu; \
    if other=$(id -un 1000 2>/dev/null); then userdel -r "$other"; fi; \
    useradd --uid 1000 --gid 0 --no-log-init --home-dir /var/lib/bringup --no-create-home \
        --shell /bin/bash --password '*' bringup; \
    line='if [ -n "${BRINGUP_SESSION:-}" ]; then . "$BRINGUP_SESSION"; fi'; \
    echo "$line" >/etc/profile.d/bringup.sh; \
    sed -i "1i [ \"\${SHLVL:-}\" != 1 ] || $line" /etc/bash.bashrc; \
    install -d -m 0755 /run/sshd; \
    printf '#!/bin/sh\nexec /opt/venv/bin/python -m bringup "$@"\n' >/usr/local/bin/bringup; \
    chmod 755 /usr/local/bin/bringup; \
    install -d -o 1000 -g 0 -m 0775 /var/lib/bringup /var/lib/bringup/cache /var/lib/bringup/run /weights

# An empty directory of wheels, unless the build names another one (`--build-context wheelhouse=DIR`).
FROM scratch AS wheelhouse

# uv, which installs everything else; nothing of this stage is in the image.
FROM base AS uv
ARG FLAVOUR
# hadolint ignore=DL3008
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    --mount=type=cache,id=bringup-apt-${FLAVOUR},target=/var/cache/apt,sharing=locked \
    --mount=type=tmpfs,target=/var/lib/apt/lists \
    set -eu; export DEBIAN_FRONTEND=noninteractive; \
    set -- -q -o APT::Keep-Downloaded-Packages=true -o Acquire::Retries=3; \
    if [ -s /run/secrets/ca.crt ]; then set -- "$@" -o Acquire::https::CaInfo=/run/secrets/ca.crt; fi; \
    apt-get "$@" update; \
    apt-get "$@" install -y --no-install-recommends python3-venv
COPY locks/build.lock /locks/build.lock
ARG PIP_INDEX_URL=""
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    --mount=type=bind,from=wheelhouse,target=/wheelhouse \
    set -eu; \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    python3 -m venv /opt/uv; \
    /opt/uv/bin/pip install -q --disable-pip-version-check --no-cache-dir --find-links /wheelhouse \
        --require-hashes --no-deps --only-binary :all: -r /locks/build.lock

# The server's interpreter: exactly the locked wheels, compiled to bytecode once and for all (the files never change,
# so Python need not compare them with their sources at every start).
FROM base AS wheels
ARG FLAVOUR
ARG PIP_INDEX_URL=""
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY locks/${FLAVOUR}.lock /opt/bringup/wheels.lock
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    --mount=type=bind,from=uv,source=/opt/uv/bin/uv,target=/usr/local/bin/uv \
    --mount=type=bind,from=wheelhouse,target=/wheelhouse \
    --mount=type=cache,id=bringup-uv,target=/root/.cache/uv \
    set -eu; unset PYTHONDONTWRITEBYTECODE; \
    export UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_LINK_MODE=copy UV_NO_CONFIG=1 \
        UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=180 UV_HTTP_RETRIES=10 UV_DEFAULT_INDEX="$PIP_INDEX_URL"; \
    if [ -s /run/secrets/ca.crt ]; then export SSL_CERT_FILE=/run/secrets/ca.crt; fi; \
    set -- --find-links /wheelhouse; \
    if [ "$FLAVOUR" = cpu ] && [ -n "$TORCH_INDEX" ]; then set -- "$@" --find-links "${TORCH_INDEX%/}/torch/"; fi; \
    uv venv --quiet --no-project --python /usr/bin/python3 /opt/venv; \
    uv pip install --quiet --python /opt/venv/bin/python --require-hashes --no-deps --only-binary :all: \
        "$@" -r /opt/bringup/wheels.lock; \
    packages=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
    echo /opt/bringup/src >"$packages/bringup.pth"

# The one model's part of the weights lock, so that pinning another model does not fetch this one again. A name that is
# not in the lock keeps all of it: the next stage says which names there are. So does MODEL=none, an image without
# weights that can serve each locked model from a volume or a directory.
FROM base AS pin
ARG MODEL=tiny-qwen2
COPY bringup/data/weights.lock /lock.json
RUN python3 -c "import json, sys; text = open('/lock.json').read(); lock = json.loads(text); \
one = {name: model for name, model in lock['models'].items() if name == sys.argv[1]}; \
open('/weights.lock', 'w').write(json.dumps({**lock, 'models': one}) if one else text)" "$MODEL"

# The weights, fetched or copied by the lock and compared with it, whatever they are served by. Slot 0 has the lock and
# the small files; each large file has a slot of its own, as far as there are slots: each slot is a layer of the image.
FROM base AS weights
COPY locks/fetch.lock /locks/fetch.lock
ARG PIP_INDEX_URL=""
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    --mount=type=bind,from=uv,source=/opt/uv/bin/uv,target=/usr/local/bin/uv \
    --mount=type=bind,from=wheelhouse,target=/wheelhouse \
    --mount=type=cache,id=bringup-uv,target=/root/.cache/uv \
    set -eu; \
    export UV_LINK_MODE=copy UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never UV_DEFAULT_INDEX="$PIP_INDEX_URL"; \
    if [ -s /run/secrets/ca.crt ]; then export SSL_CERT_FILE=/run/secrets/ca.crt; fi; \
    uv venv --quiet --no-project --python /usr/bin/python3 /opt/fetch; \
    uv pip install --quiet --python /opt/fetch/bin/python --require-hashes --no-deps --only-binary :all: \
        --find-links /wheelhouse -r /locks/fetch.lock
# Only these files of the package, so that a change in any other does not fetch again.
COPY bringup/errors.py bringup/lock.py /src/bringup/
COPY bringup/weights /src/bringup/weights
COPY --from=pin /weights.lock /src/bringup/data/weights.lock
ARG MODEL=tiny-qwen2
ARG HF_ENDPOINT=""
# hf_transfer or nothing; auto and http allow a slower way.
ARG TRANSFER=hf_transfer
WORKDIR /src
RUN --mount=type=bind,source=models,target=/src/models \
    --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    --mount=type=secret,id=hf_token,target=/run/secrets/hf_token \
    set -eu; \
    if [ -z "$HF_ENDPOINT" ]; then unset HF_ENDPOINT; fi; \
    if [ -s /run/secrets/ca.crt ]; then export SSL_CERT_FILE=/run/secrets/ca.crt; fi; \
    mkdir -p /receipt /slots/0 /slots/1 /slots/2 /slots/3 /slots/4 /slots/5 /slots/6 /slots/7 /slots/8; \
    if [ "$MODEL" = none ]; then \
        cp bringup/data/weights.lock /slots/0/weights.lock; \
    else \
        here=/slots/0/models/$MODEL; \
        mkdir -p /slots/0/models; \
        /opt/fetch/bin/python -m bringup.weights stage --model "$MODEL" --source /src/models --out "$here" \
            --token-file /run/secrets/hf_token --transfer "$TRANSFER" \
            --receipt /receipt/weights.receipt.json --lock-out /slots/0/weights.lock; \
        find "$here" -type f -size +32768k >/tmp/large; \
        LC_ALL=C sort -o /tmp/large /tmp/large; \
        n=0; \
        while IFS= read -r file; do \
            to=/slots/$((n % 8 + 1))/${file#/slots/0/}; \
            mkdir -p "${to%/*}"; \
            mv "$file" "$to"; \
            n=$((n + 1)); \
        done </tmp/large; \
    fi; \
    chmod -R u=rwX,go=rX /slots /receipt; \
    find /slots /receipt -exec touch -h -d @0 {} +

# Our own code, the layer that changes most.
FROM wheels AS app
COPY bringup /out/src/bringup
RUN set -eu; \
    chmod -R u=rwX,go=rX /out; \
    find /out -exec touch -h -d @0 {} +; \
    /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash -s /out -p /opt/bringup /out/src; \
    find /out -exec touch -h -d @0 {} +

# What the server imports, in one file, and which libraries that loads: bringup/inside/{pack,prefetch}.py.
FROM wheels AS imports
COPY --from=app /out/ /opt/bringup/
RUN mkdir /list && HOME=/tmp VLLM_NO_USAGE_STATS=1 /opt/venv/bin/python -m bringup.inside.prefetch /list \
    && touch -d @0 /list/*

FROM wheels AS server
ARG MODEL=tiny-qwen2
ENV BRINGUP_MODEL=${MODEL} \
    BRINGUP_TARGET=local \
    PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/var/lib/bringup \
    VLLM_CACHE_ROOT=/var/lib/bringup/cache \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/bringup/cache/inductor \
    TRITON_CACHE_DIR=/var/lib/bringup/cache/triton \
    FLASHINFER_WORKSPACE_BASE=/var/lib/bringup/cache \
    CUDA_CACHE_PATH=/var/lib/bringup/cache/cuda \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_ENABLE_HF_TRANSFER=0 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    VLLM_USE_FLASHINFER_SAMPLER=0
COPY --link --from=weights /slots/0/ /opt/bringup/
COPY --link --from=weights /slots/1/ /opt/bringup/
COPY --link --from=weights /slots/2/ /opt/bringup/
COPY --link --from=weights /slots/3/ /opt/bringup/
COPY --link --from=weights /slots/4/ /opt/bringup/
COPY --link --from=weights /slots/5/ /opt/bringup/
COPY --link --from=weights /slots/6/ /opt/bringup/
COPY --link --from=weights /slots/7/ /opt/bringup/
COPY --link --from=weights /slots/8/ /opt/bringup/
# It holds times, so it is never the same twice; what was fetched is.
COPY --link --from=weights /receipt/ /opt/bringup/
COPY --link --from=imports /list/ /opt/bringup/
COPY --link --from=app /out/ /opt/bringup/
USER 1000:0
WORKDIR /var/lib/bringup
VOLUME /var/lib/bringup
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=10m --start-interval=5s --retries=3 \
    CMD ["/opt/venv/bin/python", "-m", "bringup.inside.health"]
ENTRYPOINT ["/usr/bin/tini", "-s", "-g", "--", "/opt/venv/bin/python", "-m", "bringup.inside"]
