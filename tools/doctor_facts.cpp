#include "tools/doctor_facts.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <net/if.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "cpnsa/info.hpp"
#include "tools/provenance.hpp"

namespace cpnsa::tool {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Prefixes of variables that change what NCCL, MPI or the library do, and those that differ by rank on purpose.
constexpr std::string_view compared[] = {"NCCL_", "CPNSA_", "OMPI_MCA_", "UCX_"};
constexpr std::string_view by_rank[] = {"NCCL_HOSTID",           "OMPI_MCA_orte_",  "OMPI_MCA_ess",
                                        "OMPI_MCA_plm",          "OMPI_MCA_routed", "OMPI_MCA_pmix",
                                        "OMPI_MCA_initial_wdir", "OMPI_MCA_shmem_", "OMPI_MCA_mpi_oversubscribe"};

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::int64_t number_in(const fs::path& path) {
  std::ifstream file(path);
  std::int64_t number = 0;
  return file >> number ? number : 0;
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  return first_line("/proc/sys/kernel/arch");
}

std::int64_t limit_of(__rlimit_resource resource) {
  rlimit limit{};
  if (::getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return static_cast<std::int64_t>(limit.rlim_cur);
}

std::int64_t free_shared_memory() {
  struct statvfs file_system {};
  if (::statvfs("/dev/shm", &file_system) != 0) return -1;
  return static_cast<std::int64_t>(file_system.f_bavail) * static_cast<std::int64_t>(file_system.f_frsize);
}

std::int64_t usable_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  return ::sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 0;
}

std::vector<Interface> interfaces_that_are_up() {
  std::vector<Interface> all;
  std::error_code error;
  for (fs::directory_iterator entry("/sys/class/net", error), end; !error && entry != end; entry.increment(error)) {
    const fs::path folder = entry->path();
    const std::int64_t flags = std::strtoll(first_line(folder / "flags").c_str(), nullptr, 16);
    if ((flags & IFF_UP) == 0 || (flags & IFF_LOOPBACK) != 0) continue;
    all.push_back(
        {folder.filename(), number_in(folder / "mtu"), std::max<std::int64_t>(0, number_in(folder / "speed"))});
  }
  std::sort(all.begin(), all.end(), [](const Interface& a, const Interface& b) { return a.name < b.name; });
  return all;
}

std::map<std::string, std::string> compared_environment() {
  const auto starts = [](std::string_view text, const auto& prefixes) {
    return std::any_of(std::begin(prefixes), std::end(prefixes),
                       [&](std::string_view prefix) { return text.starts_with(prefix); });
  };
  std::map<std::string, std::string> variables;
  for (char** entry = environ; *entry; ++entry) {
    const std::string_view text(*entry);
    if (starts(text, compared) && !starts(text, by_rank))
      variables.emplace(text.substr(0, text.find('=')), text.substr(text.find('=') + 1));
  }
  return variables;
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Texts of different lengths, by rank.
std::vector<std::string> gather_texts(Communicator& control, const std::string& own) {
  const auto ranks = static_cast<std::size_t>(control.size());
  const std::uint64_t bytes = own.size();
  std::vector<std::uint64_t> sizes(ranks);
  control.all_gather_host(&bytes, sizes.data(), sizeof bytes);
  const std::uint64_t longest = std::max<std::uint64_t>(1, *std::max_element(sizes.begin(), sizes.end()));
  std::string padded = own;
  padded.resize(longest);
  std::string all(longest * ranks, '\0');
  control.all_gather_host(padded.data(), all.data(), longest);
  std::vector<std::string> texts;
  for (std::size_t rank = 0; rank < ranks; ++rank) texts.push_back(all.substr(rank * longest, sizes[rank]));
  return texts;
}

RankFacts own_facts(Execution& execution) {
  RankFacts facts;
  facts.host = host_name();
  facts.version = build_info().version;
  facts.commit = build_info().commit;
  facts.backends = fmt::format("{}", fmt::join(built_backends(), ", "));
  for (const LibraryVersion& library : library_versions()) facts.libraries[library.name] = library.found;
  facts.transport = name_of(execution.transport());
  if (execution.device().name() == "cuda") {
    const std::vector<GpuInfo> gpus = backends::cuda_gpus();
    const GpuInfo& gpu = gpus.at(static_cast<std::size_t>(execution.gpu_index()));
    facts.gpu = gpu.name;
    facts.gpu_uuid = gpu.uuid;
    facts.gpu_memory_bytes = static_cast<std::int64_t>(gpu.memory_bytes);
    facts.gpu_free_bytes = static_cast<std::int64_t>(gpu.free_bytes);
    facts.gpu_clock_mhz = gpu.clock_mhz;
    facts.gpu_capability = gpu.capability;
  }
  facts.cpu = cpu_model();
  facts.cores = usable_cores();
  facts.open_files = limit_of(RLIMIT_NOFILE);
  facts.locked_bytes = limit_of(RLIMIT_MEMLOCK);
  facts.shared_memory_free = free_shared_memory();
  facts.has_infiniband = fs::exists("/sys/class/infiniband") && !fs::is_empty("/sys/class/infiniband");
  facts.interfaces = interfaces_that_are_up();
  facts.environment = compared_environment();
  return facts;
}

RankFacts facts_from(const ordered_json& json) {
  RankFacts facts;
  facts.host = json["host"];
  facts.version = json["version"];
  facts.commit = json["commit"];
  facts.backends = json["backends"];
  facts.libraries = json["libraries"].get<std::map<std::string, std::string>>();
  facts.transport = json["transport"];
  facts.gpu = json["gpu"];
  facts.gpu_uuid = json["gpu_uuid"];
  facts.gpu_memory_bytes = json["gpu_memory_bytes"];
  facts.gpu_free_bytes = json["gpu_free_bytes"];
  facts.gpu_clock_mhz = json["gpu_clock_mhz"];
  facts.gpu_capability = json["gpu_capability"];
  facts.cpu = json["cpu"];
  facts.cores = json["cores"];
  facts.open_files = json["open_files"];
  facts.locked_bytes = json["locked_bytes"];
  facts.shared_memory_free = json["shared_memory_free"];
  facts.has_infiniband = json["has_infiniband"];
  for (const auto& entry : json["interfaces"])
    facts.interfaces.push_back({entry["name"], entry["mtu"], entry["megabits"]});
  facts.environment = json["environment"].get<std::map<std::string, std::string>>();
  return facts;
}

}  // namespace

ordered_json json_of(const RankFacts& facts) {
  ordered_json interfaces = ordered_json::array();
  for (const Interface& entry : facts.interfaces)
    interfaces.push_back({{"name", entry.name}, {"mtu", entry.mtu}, {"megabits", entry.megabits}});
  return {{"host", facts.host},
          {"version", facts.version},
          {"commit", facts.commit},
          {"backends", facts.backends},
          {"libraries", facts.libraries},
          {"transport", facts.transport},
          {"gpu", facts.gpu},
          {"gpu_uuid", facts.gpu_uuid},
          {"gpu_memory_bytes", facts.gpu_memory_bytes},
          {"gpu_free_bytes", facts.gpu_free_bytes},
          {"gpu_clock_mhz", facts.gpu_clock_mhz},
          {"gpu_capability", facts.gpu_capability},
          {"cpu", facts.cpu},
          {"cores", facts.cores},
          {"open_files", facts.open_files},
          {"locked_bytes", facts.locked_bytes},
          {"shared_memory_free", facts.shared_memory_free},
          {"has_infiniband", facts.has_infiniband},
          {"clock_seconds", facts.clock_seconds},
          {"interfaces", interfaces},
          {"environment", facts.environment}};
}

std::vector<RankFacts> facts_of_ranks(Communicator& control, Execution& execution) {
  std::string own;
  agree_on(control, "facts", [&] { own = json_of(own_facts(execution)).dump(); });
  std::vector<RankFacts> all;
  for (const std::string& text : gather_texts(control, own)) all.push_back(facts_from(ordered_json::parse(text)));
  // After a barrier all ranks look at their clocks at nearly the same time.
  control.barrier();
  const double clock = now();
  std::vector<double> clocks(all.size());
  control.all_gather_host(&clock, clocks.data(), sizeof clock);
  for (std::size_t rank = 0; rank < all.size(); ++rank) all[rank].clock_seconds = clocks[0] - clocks[rank];
  return all;
}

}  // namespace cpnsa::tool
