#include "cpnsa/cpu/device.hpp"

#include "backends/backends.hpp"
#include "c/objects.hpp"

using namespace cpnsa::c;

int cpnsa_has_cuda(void) {
  return cpnsa::backends::has_cuda;
}

int cpnsa_has_nccl(void) {
  return cpnsa::backends::has_nccl;
}

cpnsa_status cpnsa_device_create_cpu(cpnsa_device* device) {
  return guarded(__func__, [&] { create(devices(), device, "device", cpnsa::cpu::make_device); });
}

cpnsa_status cpnsa_device_create_cuda(int index, cpnsa_device* device) {
  return guarded(
      __func__, [&] { create(devices(), device, "device", [&] { return cpnsa::backends::make_cuda_device(index); }); });
}

cpnsa_status cpnsa_device_destroy(cpnsa_device device) {
  return guarded(__func__, [&] { devices().remove(device); });
}
