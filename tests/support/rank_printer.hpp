#pragma once

namespace cpnsa::test {

/// Where ranks are processes: rank 0 shows GoogleTest's progress, the others only what fails, with their rank.
void print_as_rank(int rank);

}  // namespace cpnsa::test
