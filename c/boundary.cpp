#include "c/boundary.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

namespace cpnsa::c {
namespace {

// Not a string: an error must be told without memory too.
thread_local std::array<char, 4096> last_error{};

cpnsa_status keep(cpnsa_status status, const char* function, const char* text) {
  std::snprintf(last_error.data(), last_error.size(), "%s: %s", function, text);
  return status;
}

}  // namespace

cpnsa_status report(const char* function) noexcept {
  try {
    throw;
  } catch (const HandleError& error) {
    return keep(CPNSA_ERROR_HANDLE, function, error.what());
  } catch (const ConfigError& error) {
    return keep(CPNSA_ERROR_CONFIG, function, error.what());
  } catch (const ArgumentError& error) {
    return keep(CPNSA_ERROR_ARGUMENT, function, error.what());
  } catch (const UnsupportedError& error) {
    return keep(CPNSA_ERROR_UNSUPPORTED, function, error.what());
  } catch (const MismatchError& error) {
    return keep(CPNSA_ERROR_MISMATCH, function, error.what());
  } catch (const DeadlineError& error) {
    return keep(CPNSA_ERROR_DEADLINE, function, error.what());
  } catch (const CommunicationError& error) {
    return keep(CPNSA_ERROR_COMMUNICATION, function, error.what());
  } catch (const DeviceError& error) {
    return keep(CPNSA_ERROR_DEVICE, function, error.what());
  } catch (const std::bad_alloc&) {
    return keep(CPNSA_ERROR_MEMORY, function, "no host memory left");
  } catch (const std::exception& error) {
    return keep(CPNSA_ERROR_INTERNAL, function, error.what());
  } catch (...) {
    return keep(CPNSA_ERROR_INTERNAL, function, "an exception that is no std::exception");
  }
}

}  // namespace cpnsa::c

const char* cpnsa_last_error(void) {
  return cpnsa::c::last_error.data();
}

const char* cpnsa_status_name(int status) {
  switch (status) {
    case CPNSA_SUCCESS: return "CPNSA_SUCCESS";
    case CPNSA_ERROR_CONFIG: return "CPNSA_ERROR_CONFIG";
    case CPNSA_ERROR_ARGUMENT: return "CPNSA_ERROR_ARGUMENT";
    case CPNSA_ERROR_UNSUPPORTED: return "CPNSA_ERROR_UNSUPPORTED";
    case CPNSA_ERROR_MISMATCH: return "CPNSA_ERROR_MISMATCH";
    case CPNSA_ERROR_COMMUNICATION: return "CPNSA_ERROR_COMMUNICATION";
    case CPNSA_ERROR_DEADLINE: return "CPNSA_ERROR_DEADLINE";
    case CPNSA_ERROR_DEVICE: return "CPNSA_ERROR_DEVICE";
    case CPNSA_ERROR_HANDLE: return "CPNSA_ERROR_HANDLE";
    case CPNSA_ERROR_MEMORY: return "CPNSA_ERROR_MEMORY";
    case CPNSA_ERROR_INTERNAL: return "CPNSA_ERROR_INTERNAL";
    default: return "?";
  }
}
