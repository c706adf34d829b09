#pragma once

namespace cpnsa::mpi {

// The kinds of messages on a communicator of the library's own.
inline constexpr int header_tag = 0;
inline constexpr int content_tag = 1;
inline constexpr int failure_tag = 2;

}  // namespace cpnsa::mpi
