#include "tools/doctor_faults.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

namespace cpnsa::tool {
namespace {

constexpr std::int64_t mebibyte = 1 << 20;

// Shared memory that Open MPI and NCCL take per rank: with less they fail, with little they fall back to slow paths.
constexpr std::int64_t shared_memory_needed = 8 * mebibyte, shared_memory_wanted = 64 * mebibyte;

// Open files: those of a process, and the sockets to every other rank.
constexpr std::int64_t files_of_process = 128, files_per_rank = 16;

// Fractions of the median bandwidth of links of one kind.
constexpr double slow_link = 0.25, broken_link = 0.125;

using Ranks = std::vector<RankFacts>;

/// Collects faults by comparing ranks with rank 0.
class Comparison {
 public:
  explicit Comparison(const Ranks& ranks) : ranks_(ranks) {}

  /// A fault for each value that other ranks have.
  void equal(Severity severity, const std::string& what, const std::function<std::string(const RankFacts&)>& value,
             const std::string& remedy) {
    const std::string expected = value(ranks_.front());
    std::map<std::string, std::vector<int>> others;
    for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank)
      if (const std::string found = value(ranks_[static_cast<std::size_t>(rank)]); found != expected)
        others[found].push_back(rank);
    const auto shown = [](const std::string& text) { return text.empty() ? std::string("none") : text; };
    for (const auto& [found, of_ranks] : others)
      faults.push_back({severity, of_ranks,
                        fmt::format("{}: found {}, expected {}, as on rank 0", what, shown(found), shown(expected)),
                        remedy});
  }

  /// A fault for the ranks that `problem` has a text for; ranks of equal texts share one.
  void each(Severity severity, const std::function<std::string(const RankFacts&)>& problem, const std::string& remedy) {
    std::map<std::string, std::vector<int>> found;
    for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank)
      if (const std::string text = problem(ranks_[static_cast<std::size_t>(rank)]); !text.empty())
        found[text].push_back(rank);
    for (const auto& [text, of_ranks] : found) faults.push_back({severity, of_ranks, text, remedy});
  }

  std::vector<Fault> faults;

 private:
  const Ranks& ranks_;
};

void compare_software(const Ranks& ranks, Comparison& comparison) {
  comparison.equal(
      Severity::serious, "version", [](const RankFacts& facts) { return facts.version; },
      "install one version of cpnsa on every host");
  comparison.equal(
      Severity::serious, "commit", [](const RankFacts& facts) { return facts.commit; },
      "install one build of cpnsa on every host");
  comparison.equal(
      Severity::serious, "backends", [](const RankFacts& facts) { return facts.backends; },
      "install one build of cpnsa on every host");
  std::set<std::string> names;
  for (const RankFacts& facts : ranks)
    for (const auto& [name, version] : facts.libraries) names.insert(name);
  for (const std::string& name : names)
    comparison.equal(
        name == "CUDA driver" ? Severity::warning : Severity::serious, name,
        [&](const RankFacts& facts) {
          const auto found = facts.libraries.find(name);
          return found == facts.libraries.end() ? std::string() : found->second;
        },
        fmt::format("make all hosts load one version of {} (modules, LD_LIBRARY_PATH, containers)", name));
  names.clear();
  for (const RankFacts& facts : ranks)
    for (const auto& [name, value] : facts.environment) names.insert(name);
  for (const std::string& name : names)
    comparison.equal(
        name.starts_with("NCCL_") ? Severity::serious : Severity::warning, name,
        [&](const RankFacts& facts) {
          const auto found = facts.environment.find(name);
          return found == facts.environment.end() ? std::string() : found->second;
        },
        "set it alike on every rank (mpirun -x NAME, srun --export)");
}

void compare_hardware(const Ranks& ranks, Comparison& comparison) {
  comparison.equal(
      Severity::serious, "transport", [](const RankFacts& facts) { return facts.transport; },
      "give every rank a GPU, or choose one --transport");
  comparison.equal(
      Severity::serious, "compute capability of the GPU",
      [](const RankFacts& facts) { return facts.gpu_capability ? std::to_string(facts.gpu_capability) : ""; },
      "use one kind of GPU: other kinds run other kernels, whose selections may differ");
  comparison.equal(
      Severity::warning, "GPU", [](const RankFacts& facts) { return facts.gpu; },
      "expect the speed of the slowest kind");
  comparison.equal(
      Severity::warning, "maximum GPU clock, MHz",
      [](const RankFacts& facts) { return facts.gpu_clock_mhz ? std::to_string(facts.gpu_clock_mhz) : ""; },
      "reset application clocks (nvidia-smi -rac)");
  comparison.equal(
      Severity::warning, "CPU", [](const RankFacts& facts) { return facts.cpu; },
      "build for the oldest of them (CPNSA_CPU_ARCH), or expect the speed of the slowest");
  comparison.each(
      Severity::warning,
      [](const RankFacts& facts) -> std::string {
        if (facts.gpu_memory_bytes == 0 || 2 * facts.gpu_free_bytes > facts.gpu_memory_bytes) return {};
        return fmt::format("free GPU memory: found {} MiB of {}, expected more than half",
                           facts.gpu_free_bytes / mebibyte, facts.gpu_memory_bytes / mebibyte);
      },
      "end other processes on the GPU (nvidia-smi lists them)");
  std::map<std::string, std::vector<int>> ranks_of_gpu;
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank)
    if (const std::string& uuid = ranks[static_cast<std::size_t>(rank)].gpu_uuid; !uuid.empty())
      ranks_of_gpu[uuid].push_back(rank);
  for (const auto& [uuid, of_gpu] : ranks_of_gpu)
    if (of_gpu.size() > 1 && ranks[static_cast<std::size_t>(of_gpu.front())].transport == "nccl")
      comparison.faults.push_back({Severity::serious, of_gpu,
                                   fmt::format("{}: found {} ranks, expected one", uuid, of_gpu.size()),
                                   "start as many ranks per host as it has GPUs, and do not set CUDA_VISIBLE_DEVICES "
                                   "to one GPU for all"});
}

void check_limits(const Ranks& ranks, Comparison& comparison) {
  const auto size = static_cast<std::int64_t>(ranks.size());
  const std::int64_t files = files_of_process + files_per_rank * size;
  comparison.each(
      Severity::serious,
      [&](const RankFacts& facts) -> std::string {
        if (facts.open_files < 0 || facts.open_files >= files) return {};
        return fmt::format("open files: found a limit of {}, expected at least {}", facts.open_files, files);
      },
      fmt::format("raise it (ulimit -n {}, LimitNOFILE of the launcher's service)", files));
  comparison.each(
      Severity::warning,
      [](const RankFacts& facts) -> std::string {
        if (!facts.has_infiniband || facts.locked_bytes < 0) return {};
        return fmt::format("locked memory: found a limit of {} bytes, expected none where InfiniBand is used",
                           facts.locked_bytes);
      },
      "ulimit -l unlimited, or LimitMEMLOCK=infinity of the launcher's service");
  if (size == 1) return;

  std::map<std::string, std::int64_t> ranks_of_host;
  for (const RankFacts& facts : ranks) ++ranks_of_host[facts.host];
  const auto shared_memory = [&](const RankFacts& facts, std::int64_t from, std::int64_t to) -> std::string {
    const std::int64_t local = ranks_of_host.at(facts.host);
    if (local == 1 || facts.transport == "threads" || facts.shared_memory_free < from * local ||
        facts.shared_memory_free >= to * local)
      return {};
    return fmt::format("/dev/shm: found {} MiB free, expected {} for {} ranks", facts.shared_memory_free / mebibyte,
                       to * local / mebibyte, local);
  };
  const std::string remedy = "enlarge it (docker run --shm-size=8g --ipc=host, mount -o remount,size=8g /dev/shm)";
  comparison.each(
      Severity::serious,
      [&](const RankFacts& facts) -> std::string {
        if (facts.shared_memory_free < 0 && facts.transport != "threads")
          return "/dev/shm: found none, expected a file system in memory";
        return shared_memory(facts, 0, shared_memory_needed);
      },
      remedy);
  comparison.each(
      Severity::warning,
      [&](const RankFacts& facts) { return shared_memory(facts, shared_memory_needed, shared_memory_wanted); }, remedy);
  comparison.each(
      Severity::warning,
      [&](const RankFacts& facts) -> std::string {
        const std::int64_t local = ranks_of_host.at(facts.host);
        if (!facts.gpu.empty() || facts.cores == 0 || facts.cores >= (facts.transport == "threads" ? local : 1))
          return {};
        return fmt::format("cores: found {} for {} ranks, expected one per rank", facts.cores, local);
      },
      "start fewer ranks per host, or allow more cores (mpirun --bind-to none)");
  comparison.each(
      Severity::warning,
      [](const RankFacts& facts) -> std::string {
        if (std::abs(facts.clock_seconds) < 1) return {};
        return fmt::format("clock: found {:.1f} s {} that of rank 0, expected less than 1 s",
                           std::abs(facts.clock_seconds), facts.clock_seconds > 0 ? "behind" : "before");
      },
      "synchronise the hosts' clocks (chrony, ntp): logs and traces of ranks cannot be compared");

  if (ranks_of_host.size() == 1) return;
  comparison.each(
      Severity::serious,
      [](const RankFacts& facts) {
        return std::string(facts.interfaces.empty() ? "network: found no interface that is up, expected one" : "");
      },
      "give the container the host's network (--network host), or bring an interface up");
  const auto of_fastest = [](std::int64_t Interface::*member) {
    return [member](const RankFacts& facts) {
      std::int64_t most = 0;
      for (const Interface& entry : facts.interfaces) most = std::max(most, entry.*member);
      return std::to_string(most);
    };
  };
  comparison.equal(Severity::warning, "largest MTU of the interfaces", of_fastest(&Interface::mtu),
                   "set one MTU on all hosts");
  comparison.equal(Severity::warning, "speed of the fastest interface, Mb/s", of_fastest(&Interface::megabits),
                   "check the cable and the switch port");
}

void sort_by_severity(std::vector<Fault>& faults) {
  std::stable_sort(faults.begin(), faults.end(),
                   [](const Fault& a, const Fault& b) { return a.severity > b.severity; });
}

double median_bandwidth(const std::vector<const Link*>& links) {
  std::vector<double> values;
  for (const Link* link : links) values.push_back(link->bytes_per_second);
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

std::vector<Fault> faults_of(const Ranks& ranks) {
  Comparison comparison(ranks);
  compare_software(ranks, comparison);
  compare_hardware(ranks, comparison);
  check_limits(ranks, comparison);
  sort_by_severity(comparison.faults);
  return comparison.faults;
}

std::vector<Fault> faults_of(const std::vector<Link>& links) {
  std::vector<Fault> faults;
  for (const Link& link : links)
    if (!link.right)
      faults.push_back({Severity::serious,
                        {link.first, link.second},
                        "data: found other bytes than were sent, expected the same",
                        "replace the hardware, or report it with this output"});
  for (const bool same_host : {true, false}) {
    std::vector<const Link*> kind;
    for (const Link& link : links)
      if (link.same_host == same_host) kind.push_back(&link);
    constexpr std::size_t comparable = 3;  // with fewer the median may be the slow one itself
    if (kind.size() < comparable) continue;
    const double median = median_bandwidth(kind);
    for (const Link* link : kind) {
      if (link->bytes_per_second >= slow_link * median) continue;
      faults.push_back({link->bytes_per_second < broken_link * median ? Severity::serious : Severity::warning,
                        {link->first, link->second},
                        fmt::format("link of ranks {} and {}: found {:.3f} GB/s, expected about {:.3f}, the median of "
                                    "links {}",
                                    link->first, link->second, link->bytes_per_second * 1e-9, median * 1e-9,
                                    same_host ? "within a host" : "between hosts"),
                        same_host
                            ? "nvidia-smi topo -m and nvidia-smi nvlink -s show the path; leave the GPU out"
                            : "check cable, port and NCCL_IB_HCA or NCCL_SOCKET_IFNAME of both hosts; leave one out"});
    }
  }
  sort_by_severity(faults);
  return faults;
}

bool is_serious(const std::vector<Fault>& faults) {
  return std::any_of(faults.begin(), faults.end(),
                     [](const Fault& fault) { return fault.severity == Severity::serious; });
}

}  // namespace cpnsa::tool
