#pragma once

// Included before anything that needs C++20, so that a compiler of an older standard says so first.

#if __cplusplus < 202002L
#error "cpnsa needs C++20: compile with -std=c++20"
#endif
