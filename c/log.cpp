#include "cpnsa/log.hpp"

#include <string>
#include <string_view>

#include "c/boundary.hpp"
#include "c/enumerators.hpp"
#include "c/parameters.hpp"

using namespace cpnsa::c;

static_assert(matches<cpnsa::LogLevel, cpnsa_log_level>("CPNSA_LOG_"));

cpnsa_status cpnsa_set_log_hook(cpnsa_log_hook hook, void* user) {
  return guarded(__func__, [&] {
    if (!hook) return cpnsa::set_log_hook({});
    cpnsa::set_log_hook([hook, user](cpnsa::LogLevel level, std::string_view message) {
      hook(user, static_cast<int32_t>(level) + 1, std::string(message).c_str());
    });
  });
}

cpnsa_status cpnsa_set_log_level(int32_t level) {
  return guarded(__func__, [&] { cpnsa::set_log_level(to_enum<cpnsa::LogLevel>(level, "level")); });
}
