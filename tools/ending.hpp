#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "tools/ranks.hpp"

namespace cpnsa::tool {

/// Makes Ctrl-C (SIGINT) and SIGTERM end the program's waits for other ranks, and the program itself should it not be
/// in a wait within two seconds; makes SIGUSR1 write the flight record (see FlightRecorder).
void handle_signals();

/// Ends the program after a failure: prints "PROGRAM: error: PROBLEM" on one line and ends every process of the job,
/// without waiting for any of them. Rank 0 prints at once. The others, whose ranks stand in their lines, print only if
/// the job still runs after a grace period, lower ranks first. Returns the exit status where there is no job to end.
int end_by_failure(std::string_view program, std::string problem, const Launch& launch,
                   std::unique_ptr<RankGroup> ranks);

}  // namespace cpnsa::tool
