#include "cpnsa/mpi/info.hpp"

#include <fmt/format.h>
#include <mpi.h>

#include <string>

namespace cpnsa::mpi {

LibraryVersion library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) length = 0;
  std::string found(text, static_cast<std::size_t>(length));
  found = found.substr(0, found.find_first_of("\n,"));  // the first item says which and which version
  return {"MPI", fmt::format("standard {}.{}", MPI_VERSION, MPI_SUBVERSION), found};
}

}  // namespace cpnsa::mpi
