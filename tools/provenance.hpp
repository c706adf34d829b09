#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cpnsa/communicator.hpp"
#include "cpnsa/info.hpp"

namespace cpnsa::tool {

/// "cuda", "mpi", "nccl": those that were built in.
std::vector<std::string> built_backends();

/// The libraries of all backends that were built in.
std::vector<LibraryVersion> library_versions();

/// This process's host, without a domain.
std::string host_name();

/// The hosts of all ranks, by rank; collective.
std::vector<std::string> hosts_of(Communicator& control);

/// Version, commit, compiler, backends, libraries: facts about this build, for every JSON report.
nlohmann::ordered_json build_json();

/// The same with the hosts of the ranks, for reports of measurements.
nlohmann::ordered_json provenance_json(const std::vector<std::string>& hosts);

}  // namespace cpnsa::tool
