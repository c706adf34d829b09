#include "comm/mpi/mpi_call.hpp"

#include <fmt/format.h>

#include <cstddef>
#include <string_view>

#include "cpnsa/error.hpp"

namespace cpnsa::mpi {

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw CommunicationError(fmt::format("{}: found \"{}\", expected success", call,
                                       std::string_view(text, static_cast<std::size_t>(length))));
}

}  // namespace cpnsa::mpi
