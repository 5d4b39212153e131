variable "TAG" {
  default = "1"
}

variable "BASE" {
  default = "registry.mayfly.internal:5000/images/base/python"
}

group "default" {
  targets = ["server", "client"]
}

target "common" {
  args = {
    BASE = BASE
  }
}

target "server" {
  inherits = ["common"]
  target   = "server"
  tags     = ["images/examples/bake/server:${TAG}"]
}

target "client" {
  inherits = ["common"]
  target   = "client"
  tags     = ["images/examples/bake/client:${TAG}"]
}
