#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace cpnsa::test {

/// One way to call `cpnsa run` wrongly.
struct BadInput {
  std::string name;
  std::function<void(const std::filesystem::path& in)> spoil;  ///< changes the valid layer of write_layer()
  std::vector<std::string> flags;                              ///< beside --in and --out
  std::vector<std::string> expected;                           ///< what the one line must hold
};

std::vector<BadInput> bad_configs();
std::vector<BadInput> bad_arrays();
std::vector<BadInput> bad_shapes();
std::vector<BadInput> bad_flags();

}  // namespace cpnsa::test
