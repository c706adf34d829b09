#pragma once

namespace cpnsa::test {

/// For suites whose ranks are processes: rank 0 prints GoogleTest's progress; the others print only failures, each with
/// the rank.
void print_as_rank(int rank);

}  // namespace cpnsa::test
