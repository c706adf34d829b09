#pragma once

#include <string_view>

namespace cpnsa::tool {

/// Says what is going on, on one line of standard error that is wiped at the end; only on a terminal, only when asked.
class Progress {
 public:
  explicit Progress(bool wanted);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();
  void show(std::string_view activity);

 private:
  bool enabled_;
};

}  // namespace cpnsa::tool
