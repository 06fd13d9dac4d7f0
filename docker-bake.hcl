# docker buildx bake -f docker-bake.hcl [cpu | gpu]
#
# Every variable below is taken from the environment variable of the same name. A CA_FILE or WHEELHOUSE outside this
# directory needs `--allow fs.read=PATH` on the command line too (buildx asks for it), and so does HF_TOKEN_FILE.
# `docker build` works as well: --target is not needed, the arguments are those of target "_image".

variable "MODEL" {
  description = "name of a model that bringup/data/weights.lock pins; none: no weights in the image"
  default     = "tiny-qwen2"
}
variable "CPU_BASE" {
  description = "base image of the cpu flavour, if not the one in the Dockerfile; needs Python 3.11"
  default     = ""
}
variable "CUDA_BASE" {
  description = "base image of the gpu flavour, if not the one in the Dockerfile; needs Python 3.11 to 3.13"
  default     = ""
}
variable "TORCH_INDEX" {
  description = "where torch's CPU wheels are (cpu flavour only); empty when WHEELHOUSE has the wheel"
  default     = "https://download.pytorch.org/whl/cpu"
}
variable "WHEELHOUSE" {
  description = "directory of wheels beside the index (cpu flavour only); used while building, not in the image"
  default     = ""
}
variable "PIP_INDEX_URL" {
  description = "package index, if not the public one; it stays in the image's history, so no password in it"
  default     = ""
}
variable "HF_ENDPOINT" {
  description = "mirror of the model hub"
  default     = ""
}
variable "TRANSFER" {
  description = "what carries large files from the hub: hf_transfer or nothing, auto, http"
  default     = "hf_transfer"
}
variable "CA_FILE" {
  description = "PEM bundle of certificate authorities for apt, wheels and weights; used while building only"
  default     = ""
}
variable "HF_TOKEN_FILE" {
  description = "file with a hub token, for gated models, if not the variable HF_TOKEN; for fetching weights only"
  default     = ""
}
variable "VERSION" {
  description = "label: version of this project"
  default     = "dev"
}
variable "REVISION" {
  description = "label: commit of this project"
  default     = ""
}
variable "SOURCE" {
  description = "label: address of this project's sources"
  default     = ""
}
variable "SOURCE_DATE_EPOCH" {
  description = "label: time of creation in seconds since 1970"
  default     = ""
}
variable "CPU_LOCK_SHA256" {
  description = "label: sha256 of locks/cpu.lock"
  default     = ""
}
variable "GPU_LOCK_SHA256" {
  description = "label: sha256 of locks/gpu.lock"
  default     = ""
}
variable "WEIGHTS_LOCK_SHA256" {
  description = "label: sha256 of bringup/data/weights.lock"
  default     = ""
}
variable "WEIGHTS_DIGEST" {
  description = "label: sha256 over the sums of the model's files"
  default     = ""
}

# An argument that is not given keeps the Dockerfile's default.
function "filled" {
  params = [value]
  result = value == "" ? null : value
}

group "default" {
  targets = ["cpu", "gpu"]
}

target "_image" {
  context    = "."
  dockerfile = "Dockerfile"
  target     = "server"
  platforms  = ["linux/amd64"]
  secret = concat(
    CA_FILE == "" ? [] : ["id=ca,src=${CA_FILE}"],
    # Named, never read here: the token itself must not become part of the definition.
    HF_TOKEN_FILE == "" ? ["id=hf_token,env=HF_TOKEN"] : ["id=hf_token,src=${HF_TOKEN_FILE}"],
  )
  args = {
    MODEL         = MODEL
    PIP_INDEX_URL = PIP_INDEX_URL
    HF_ENDPOINT   = HF_ENDPOINT
    TRANSFER      = TRANSFER
  }
  # What is not known is empty rather than absent: else the base image's own labels would show through.
  labels = {
    "org.opencontainers.image.title"       = "bringup"
    "org.opencontainers.image.description" = "vLLM, ready to serve, with the weights of: ${MODEL}"
    "org.opencontainers.image.licenses"    = "Apache-2.0"
    "org.opencontainers.image.version"     = VERSION
    "org.opencontainers.image.revision"    = REVISION
    "org.opencontainers.image.source"      = SOURCE
    "org.opencontainers.image.created"     = SOURCE_DATE_EPOCH == "" ? "" : timeadd("1970-01-01T00:00:00Z", "${SOURCE_DATE_EPOCH}s")
    "dev.bringup.model"                    = MODEL
    "dev.bringup.vllm"                     = "0.32.0"
    "dev.bringup.weights-lock-sha256"      = WEIGHTS_LOCK_SHA256
    "dev.bringup.weights-digest"           = WEIGHTS_DIGEST
  }
  # No attestations: they need an image store that not every engine has.
  attest = ["type=provenance,disabled=true"]
}

target "cpu" {
  inherits = ["_image"]
  tags     = [MODEL == "none" ? "bringup:cpu" : "bringup:cpu-${MODEL}"]
  contexts = WHEELHOUSE == "" ? {} : { wheelhouse = WHEELHOUSE }
  args = {
    FLAVOUR     = "cpu"
    CPU_BASE    = filled(CPU_BASE)
    TORCH_INDEX = TORCH_INDEX
  }
  labels = {
    "dev.bringup.flavour"            = "cpu"
    "dev.bringup.wheels-lock-sha256" = CPU_LOCK_SHA256
  }
}

target "gpu" {
  inherits = ["_image"]
  tags     = [MODEL == "none" ? "bringup:gpu" : "bringup:gpu-${MODEL}"]
  args = {
    FLAVOUR   = "gpu"
    CUDA_BASE = filled(CUDA_BASE)
  }
  labels = {
    "dev.bringup.flavour"            = "gpu"
    "dev.bringup.wheels-lock-sha256" = GPU_LOCK_SHA256
  }
}
