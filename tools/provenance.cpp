#include "tools/provenance.hpp"

#include <unistd.h>

#include <array>
#include <climits>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "backends/backends.hpp"

namespace cpnsa::tool {

using nlohmann::ordered_json;

std::vector<std::string> built_backends() {
  std::vector<std::string> names{"cpu", "threads"};
  if (backends::has_cuda) names.emplace_back("cuda");
  if (backends::has_mpi) names.emplace_back("mpi");
  if (backends::has_nccl) names.emplace_back("nccl");
  return names;
}

std::vector<LibraryVersion> library_versions() {
  std::vector<LibraryVersion> all = backends::cuda_versions();
  for (const auto& more : {backends::nccl_versions(), backends::mpi_versions()})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::string host_name() {
  std::array<char, HOST_NAME_MAX + 1> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return std::string(name.data()).substr(0, std::strcspn(name.data(), "."));
}

std::vector<std::string> hosts_of(Communicator& control) {
  std::array<char, HOST_NAME_MAX + 1> own{};
  host_name().copy(own.data(), own.size() - 1);
  std::vector<std::array<char, HOST_NAME_MAX + 1>> all(static_cast<std::size_t>(control.size()));
  control.all_gather_host(own.data(), all.data(), sizeof own);
  std::vector<std::string> hosts;
  for (const auto& name : all) hosts.emplace_back(name.data());
  return hosts;
}

ordered_json build_json() {
  const BuildInfo& build = build_info();
  ordered_json json{{"version", build.version},           {"commit", build.commit},     {"compiler", build.compiler},
                    {"build_type", build.build_type},     {"cpu_arch", build.cpu_arch}, {"backends", built_backends()},
                    {"libraries", ordered_json::object()}};
  for (const LibraryVersion& library : library_versions())
    json["libraries"][library.name] = {{"compiled", library.compiled}, {"found", library.found}};
  return json;
}

ordered_json provenance_json(const std::vector<std::string>& hosts) {
  ordered_json json = build_json();
  json["nodes"] = std::set<std::string>(hosts.begin(), hosts.end()).size();
  json["hosts"] = hosts;
  return json;
}

}  // namespace cpnsa::tool
