#include "tools/together.hpp"

#include <exception>
#include <new>

namespace cpnsa::tool {

void together(Communicator& communicator, const std::function<std::string()>& local) {
  std::string call, problem;
  try {
    call = local();
  } catch (const std::bad_alloc&) {
    problem = "found no host memory left, expected enough for this rank's tensors";
  } catch (const std::exception& error) {
    problem = error.what();
    if (problem.empty()) problem = "unknown error";
  }
  agree(communicator, call, problem);
}

}  // namespace cpnsa::tool
