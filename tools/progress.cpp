#include "tools/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace cpnsa::tool {

Progress::Progress(bool wanted) : enabled_(wanted && ::isatty(STDERR_FILENO)) {}

Progress::~Progress() {
  show("");
}

void Progress::show(std::string_view activity) {
  if (!enabled_) return;
  fmt::print(stderr, "\r\033[K{}", activity);
  std::fflush(stderr);
}

}  // namespace cpnsa::tool
