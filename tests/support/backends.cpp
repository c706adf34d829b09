#include "tests/support/backends.hpp"

namespace cpnsa::test {

std::vector<DeviceBackend>& devices() {
  static std::vector<DeviceBackend> registry;
  return registry;
}

std::vector<TransportBackend>& transports() {
  static std::vector<TransportBackend> registry;
  return registry;
}

}  // namespace cpnsa::test
