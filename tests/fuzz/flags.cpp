// A command line, its arguments separated by line ends.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "tools/command_line.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::vector<std::string> arguments{"cpnsa", ""};
  for (std::size_t i = 0; i < size && arguments.size() < 64; ++i) {
    if (data[i] == '\n')
      arguments.emplace_back();
    else if (data[i] != 0)
      arguments.back().push_back(static_cast<char>(data[i]));
  }
  std::vector<const char*> pointers;
  for (const std::string& argument : arguments) pointers.push_back(argument.c_str());
  const auto invocation = cpnsa::tool::parse_command_line(static_cast<int>(pointers.size()), pointers.data());
  // Whatever was given is run, explained or refused.
  if (!invocation.run_rank && invocation.help.empty() && invocation.problem.empty()) std::abort();
  return 0;
}
