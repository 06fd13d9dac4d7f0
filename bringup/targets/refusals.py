"""What the engine says when it cannot give a container its GPU or its port, and what to do about it. Pure.

docs/gpu.md has this table; the words are tested by the pattern, and those of "Docker 28.5.2" by the real engine.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

_INSTALL = "install nvidia-container-toolkit (docs/gpu.md), then `sudo nvidia-ctk runtime configure --runtime=docker`"
_RESTART = "`sudo systemctl restart docker`"
_GENERATE = "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"
_TOOLKIT_ISSUES = "https://github.com/NVIDIA/nvidia-container-toolkit/issues"


@dataclass(frozen=True)
class Refusal:
    """One reason for which an engine does not start a container.

    `pattern`: finds it in what the engine (or compose) says, in any case; `words`: such a text; `found` may hold the
    pattern's groups as {0}, {1}; `seen`: the engine that said it here, or who reported the words.
    """

    id: str
    pattern: str
    words: str
    found: str
    needed: str
    remedy: str
    seen: str


# In this order: the first that fits counts.
REFUSALS = (
    Refusal(
        "driver-mismatch", r"driver/library version mismatch",
        "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch: unknown",
        "the NVIDIA kernel module and the driver's libraries are of two versions",
        "one version of both: the driver was updated and the old module is still loaded",
        "reboot, or stop what uses the GPUs and reload it: `sudo rmmod nvidia_uvm nvidia; sudo modprobe nvidia`",
        f"{_TOOLKIT_ISSUES}/394",
    ),
    Refusal(
        "driver-not-loaded", r"nvml error: driver not loaded|libnvidia-ml\.so\.1: cannot open shared object file",
        "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown",
        "the NVIDIA driver is not loaded on the engine's host",
        "a host where `nvidia-smi` lists the GPU",
        "install the NVIDIA driver or `sudo modprobe nvidia`; without a GPU: --flavour cpu",
        "https://github.com/cedricxie/apollo_perception_ros/issues/20",
    ),
    Refusal(
        "driver-too-old", r"unsatisfied condition: (\w+\s*[<>=]+\s*[\w.]+)",
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your driver to a "
        "newer version, or use an earlier cuda container: unknown",
        "the host's driver does not satisfy the image: {0}",
        "a driver for the image's CUDA (CUDA 13 needs 580 or newer)",
        "update the NVIDIA driver; `bringup doctor` compares it with the image",
        "https://github.com/MauriceNino/dashdot/issues/1226",
    ),
    Refusal(
        "gpu-unknown", r"device error: (?:unknown device id: )?([^\s:\\]+?)(?:\\|:|\s|$)",
        "nvidia-container-cli: device error: 1: unknown device: unknown",
        "the host has no GPU {0}",
        "GPUs that `nvidia-smi -L` lists",
        "give --gpus a number or ids of that list",
        "https://github.com/DeepLabCut/Docker4DeepLabCut2.0/issues/39",
    ),
    Refusal(
        "toolkit-too-old", r"cgroup subsystem devices not found",
        "nvidia-container-cli: container error: cgroup subsystem devices not found: unknown",
        "a container toolkit that does not know cgroup v2",
        "nvidia-container-toolkit 1.17.8 or newer (older ones also let a container escape)",
        f"update nvidia-container-toolkit, then {_RESTART}",
        "https://github.com/NVIDIA/nvidia-docker/issues/1660",
    ),
    Refusal(
        "driver-silent", r"nvidia-container-cli(?:\.real)?: initialization error: (.+?)(?:: unknown)?\.?$",
        "nvidia-container-cli: initialization error: driver rpc error: failed to process request: unknown.",
        "the container toolkit cannot talk to the NVIDIA driver ({0})",
        "a host where `nvidia-smi` lists the GPU",
        "look at `nvidia-smi` and `sudo dmesg | grep -i -e NVRM -e Xid`; reload the driver or reboot",
        f"{_TOOLKIT_ISSUES}/556",
    ),
    Refusal(
        "toolkit-program-missing",
        r"(nvidia-(?:container-runtime-hook|container-runtime|container-toolkit|container-cli|cdi-hook|ctk))\"?: "
        r"(?:executable file not found|no such file or directory)",
        "OCI runtime create failed: runc create failed: unable to start container process: error during container "
        "init: error running hook #0: fork/exec /usr/bin/nvidia-cdi-hook: no such file or directory",
        "the engine or a CDI spec calls {0}, which is not on its host",
        "the NVIDIA container toolkit, where it was when the engine was configured",
        f"install nvidia-container-toolkit again; for CDI also {_GENERATE}",
        "Docker 28.5.2",
    ),
    Refusal(
        "no-gpu-driver", r'could not select device driver "(?:nvidia)?" with capabilities',
        'could not select device driver "nvidia" with capabilities: [[gpu]]',
        "the engine has no way to give a container an NVIDIA GPU",
        "the NVIDIA container toolkit (the engine looks for its hook when it starts), or a CDI spec",
        f"{_INSTALL} and {_RESTART}; or with CDI: {_GENERATE}",
        "Docker 28.5.2",
    ),
    Refusal(
        "cdi-off", r'could not select device driver "cdi"',
        'could not select device driver "cdi" with capabilities: [[gpu]]',
        "CDI is switched off in the engine",
        "Docker 28.2 or newer, where it is on, or the feature switched on",
        f'put {{"features": {{"cdi": true}}}} into /etc/docker/daemon.json, then {_RESTART}',
        "https://github.com/containers/ramalama/issues/940",
    ),
    Refusal(
        "cdi-device-unknown", r"unresolvable CDI devices? (.+?)(?:: unknown)?\.?$",
        "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7",
        "no CDI spec of the engine names {0}",
        "devices that `nvidia-ctk cdi list` (or `docker info`) shows",
        f"give --gpus what is there; after a change of GPUs or driver: {_GENERATE}",
        "Docker 28.5.2",
    ),
    Refusal(
        "device-node-missing", r"(/dev/nvidia[\w/-]*)\"?: no such file or directory",
        'CDI device injection failed: failed to inject devices: failed to stat CDI host device "/dev/nvidia-uvm": '
        "no such file or directory",
        "the host has no {0}",
        "the device files that the CDI spec or the toolkit names",
        f"`sudo nvidia-modprobe -u -c 0` makes them; if the GPU itself is gone: {_GENERATE}",
        "Docker 28.5.2",
    ),
    Refusal(
        "cdi-spec-stale", r"error mounting \"([^\"]*(?:nvidia|cuda)[^\"]*)\".*no such file or directory",
        "OCI runtime create failed: runc create failed: unable to start container process: error during container "
        'init: error mounting "/usr/lib/x86_64-linux-gnu/libcuda.so.580.1" to rootfs at '
        '"/usr/lib/x86_64-linux-gnu/libcuda.so.580.1": stat /usr/lib/x86_64-linux-gnu/libcuda.so.580.1: no such file '
        "or directory",
        "the CDI spec names {0}, which is not on the host",
        "a CDI spec of the driver that is installed now",
        f"{_GENERATE}, after each update of the driver",
        "Docker 28.5.2",
    ),
    Refusal(
        "runtime-unknown", r"unknown or invalid runtime name: ([^\s.]+)",
        "unknown or invalid runtime name: nvidia",
        "the engine has no runtime {0}",
        "the runtime in /etc/docker/daemon.json, or none asked for: the reservation alone is enough",
        f"{_INSTALL} and {_RESTART}",
        "Docker 28.5.2",
    ),
    Refusal(
        "port-taken", r"(?:for|on) (\S+?:\d+)\S*(?: failed)?: (?:port is already allocated|address already in use)",
        "failed to set up container networking: driver failed programming external connectivity on endpoint x: "
        "Bind for 127.0.0.1:8000 failed: port is already allocated",
        "{0} is taken",
        "a free port",
        "give --port N, or stop what listens there: `ss -ltnp`",
        "Docker 28.5.2",
    ),
    Refusal(
        "engine-silent", r"cannot connect to the docker daemon at (\S+?)\.? ",
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
        "no Docker Engine answers at {0}",
        "a running engine",
        'start Docker, or run `./scripts/engine up` and `eval "$(./scripts/engine env)"`',
        "Docker 28.5.2",
    ),
)  # fmt: skip


def find(output: str) -> Refusal | None:
    """The reason that the engine's words tell, its placeholders filled; None for words that are not known."""
    for refusal in REFUSALS:
        if match := re.search(refusal.pattern, output, re.IGNORECASE | re.MULTILINE):
            return dataclasses.replace(refusal, found=refusal.found.format(*match.groups()))
    return None
