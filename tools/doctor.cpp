#include "tools/doctor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cpnsa/device_memory.hpp"
#include "cpnsa/error.hpp"
#include "tools/bench_inputs.hpp"
#include "tools/doctor_facts.hpp"
#include "tools/doctor_faults.hpp"
#include "tools/doctor_links.hpp"
#include "tools/execution.hpp"
#include "tools/json_output.hpp"
#include "tools/layer_memory.hpp"
#include "tools/progress.hpp"
#include "tools/provenance.hpp"

namespace cpnsa::tool {
namespace {

using nlohmann::ordered_json;

/// A small layer under one exchange mode.
struct ModeResult {
  Exchange exchange;
  double seconds = 0;  ///< of a forward and its backward, slowest rank
  bool right = true;   ///< whether all modes selected the same blocks
};

Config small_layer() {
  Config config;
  config.num_q_heads = 4, config.num_kv_heads = 2;
  config.head_dim_qk = config.head_dim_v = 64;
  config.select_count = 8, config.window = 128;
  return config.with_defaults();
}

/// Runs the layer under every exchange mode. Collective.
class ModeExercise {
 public:
  ModeExercise(Execution& execution, Communicator& control)
      : execution_(execution),
        control_(control),
        device_(execution.device()),
        config_(small_layer()),
        tokens_(std::max<std::int64_t>(1024, 256 * control.size())),
        partition_(Partition::make(PartitionKind::zigzag, std::vector<std::int64_t>{0, tokens_}, config_.select_block,
                                   control.size())),
        stream_(device_) {}

  std::vector<ModeResult> run(std::int64_t iterations) {
    const std::vector<LayerTensor> tensors = layer_tensors(config_, tokens_, false);
    const LayerTensor dout = dout_tensor(config_, tokens_);
    agree_on(control_, "make inputs", [&] {
      memory_.emplace(device_, execution_.dtype(), execution_.dtype(), partition_.local_tokens(control_.rank()),
                      config_, tensors, true);
      BenchInputs(execution_.dtype(), Selection::random, 1)
          .fill(device_, stream_.get(), *memory_, tensors, &dout, partition_, control_.rank(), 0);
    });
    std::vector<ModeResult> results;
    std::vector<std::int32_t> first;
    for (const Exchange exchange : enum_values<Exchange>) {
      if (exchange == Exchange::pull && control_.size() > 1 && !execution_.communicator().one_sided()) continue;
      ModeResult result{exchange};
      result.seconds = time_steps(exchange, iterations);
      std::vector<std::int32_t> selected = download_selected();
      bool same = first.empty() || selected == first;
      if (first.empty()) first = std::move(selected);
      std::vector<char> all(static_cast<std::size_t>(control_.size()));
      const char own = same ? 1 : 0;
      control_.all_gather_host(&own, all.data(), 1);
      result.right = std::all_of(all.begin(), all.end(), [](char of_rank) { return of_rank == 1; });
      results.push_back(result);
    }
    return results;
  }

 private:
  double time_steps(Exchange exchange, std::int64_t iterations) {
    AttentionOptions options;
    options.dtype = execution_.dtype();
    options.exchange = exchange;
    Attention attention(config_, partition_, device_, execution_.communicator(), options);
    DeviceBuffer workspace, saved_memory;
    SavedForward saved;
    agree_on(control_, "allocate the workspace", [&] {
      workspace = DeviceBuffer(device_, attention.workspace_bytes());
      saved_memory = DeviceBuffer(device_, attention.saved_bytes());
      saved.memory = saved_memory.data();
    });
    double best = std::numeric_limits<double>::infinity();
    for (std::int64_t i = -1; i < iterations; ++i) {
      control_.barrier();
      const auto begin = std::chrono::steady_clock::now();
      attention.forward(memory_->inputs(), memory_->out().view(), memory_->selected(), &saved, workspace.data(),
                        stream_.get());
      attention.backward(memory_->inputs(), memory_->dout().view(), saved, memory_->gradients(), workspace.data(),
                         stream_.get());
      agree_on(control_, "finish the step", [&] { execution_.communicator().wait(device_, stream_.get()); });
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      if (i >= 0) best = std::min(best, taken.count());
    }
    std::vector<double> all(static_cast<std::size_t>(control_.size()));
    control_.all_gather_host(&best, all.data(), sizeof best);
    return *std::max_element(all.begin(), all.end());
  }

  std::vector<std::int32_t> download_selected() {
    std::vector<std::int32_t> selected(static_cast<std::size_t>(partition_.local_tokens(control_.rank()) *
                                                                config_.num_kv_heads * config_.select_count));
    if (selected.empty()) return {-1};
    device_.copy(selected.data(), memory_->selected(), selected.size() * sizeof(std::int32_t), stream_.get());
    device_.synchronize(stream_.get());
    return selected;
  }

  Execution& execution_;
  Communicator& control_;
  Device& device_;
  Config config_;
  std::int64_t tokens_;
  Partition partition_;
  OwnedStream stream_;
  std::optional<LayerMemory> memory_;
};

/// Everything that was found.
struct Diagnosis {
  std::vector<RankFacts> facts;
  std::vector<Link> links;
  std::vector<Collective> collectives;
  std::vector<ModeResult> modes;
  std::vector<Fault> faults;

  std::size_t hosts() const {
    std::set<std::string> names;
    for (const RankFacts& of_rank : facts) names.insert(of_rank.host);
    return names.size();
  }

  const Link* slowest() const {
    const auto link = std::min_element(links.begin(), links.end(), [](const Link& a, const Link& b) {
      return a.bytes_per_second < b.bytes_per_second;
    });
    return link == links.end() ? nullptr : &*link;
  }
};

void add_wrong_results(Diagnosis& diagnosis) {
  for (const Collective& collective : diagnosis.collectives)
    if (!collective.right)
      diagnosis.faults.push_back({Severity::serious,
                                  {},
                                  collective.name + ": found other bytes than were sent, expected "
                                                    "the same",
                                  "replace the hardware, or report it with this output"});
  for (const ModeResult& mode : diagnosis.modes)
    if (!mode.right)
      diagnosis.faults.push_back(
          {Severity::serious,
           {},
           fmt::format("exchange {}: found other selected blocks than with {}, expected the same",
                       name_of(mode.exchange), name_of(diagnosis.modes.front().exchange)),
           "check the memory of the ranks' devices, or report it with this output"});
}

std::string text_of(const std::vector<int>& ranks) {
  constexpr std::size_t shown = 8;
  if (ranks.empty()) return "all ranks";
  const std::vector<int> first(ranks.begin(),
                               ranks.begin() + static_cast<std::ptrdiff_t>(std::min(shown, ranks.size())));
  return fmt::format("{} {}{}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(first, ", "),
                     ranks.size() > shown ? fmt::format(" and {} more", ranks.size() - shown) : "");
}

std::string text_of(const Diagnosis& diagnosis, const std::string& head) {
  std::string text = head;
  text += fmt::format("{:<24} {:>10} {:>10}  {}\n", "# what", "GB/s", "us", "");
  constexpr std::size_t shown_links = 64;
  std::vector<Link> links = diagnosis.links;
  std::stable_sort(links.begin(), links.end(),
                   [](const Link& a, const Link& b) { return a.bytes_per_second < b.bytes_per_second; });
  if (links.size() > shown_links) links.resize(shown_links);
  for (const Link& link : links)
    text += fmt::format("{:<24} {:>10.3f} {:>10.1f}  {}{}\n", fmt::format("{} <-> {}", link.first, link.second),
                        link.bytes_per_second * 1e-9, 1e6 * link.seconds, link.same_host ? "same host" : "two hosts",
                        link.right ? "" : ", WRONG DATA");
  if (diagnosis.links.size() > shown_links)
    text += fmt::format("# the slowest {} of {} links; -J has all\n", shown_links, diagnosis.links.size());
  for (const Collective& collective : diagnosis.collectives)
    text += collective.bytes > 0
                ? fmt::format("{:<24} {:>10.3f} {:>10.1f}\n", collective.name,
                              collective.bytes / collective.seconds * 1e-9, 1e6 * collective.seconds)
                : fmt::format("{:<24} {:>10} {:>10.1f}\n", collective.name, "-", 1e6 * collective.seconds);
  for (const ModeResult& mode : diagnosis.modes)
    text += fmt::format("{:<24} {:>10} {:>10.1f}  forward and backward of a small layer\n",
                        fmt::format("exchange {}", name_of(mode.exchange)), "-", 1e6 * mode.seconds);
  if (const Link* slowest = diagnosis.slowest())
    text +=
        fmt::format("slowest link: ranks {} and {} ({}, {}), {:.3f} GB/s\n", slowest->first, slowest->second,
                    diagnosis.facts[static_cast<std::size_t>(slowest->first)].host,
                    diagnosis.facts[static_cast<std::size_t>(slowest->second)].host, slowest->bytes_per_second * 1e-9);
  for (const Fault& fault : diagnosis.faults)
    text += fmt::format("{}: {}: {}\n  do: {}\n", name_of(fault.severity), text_of(fault.ranks), fault.problem,
                        fault.remedy);
  return text + fmt::format("{} fault{}, {}\n", diagnosis.faults.size(), diagnosis.faults.size() == 1 ? "" : "s",
                            is_serious(diagnosis.faults) ? "at least one of them serious" : "none of them serious");
}

ordered_json json_of(const Diagnosis& diagnosis, Execution& execution) {
  std::vector<std::string> hosts;
  for (const RankFacts& facts : diagnosis.facts) hosts.push_back(facts.host);
  ordered_json report{{"provenance", provenance_json(hosts)},
                      {"device", execution.device().name()},
                      {"transport", name_of(execution.transport())},
                      {"ranks", ordered_json::array()}};
  for (const RankFacts& facts : diagnosis.facts) report["ranks"].push_back(json_of(facts));
  const auto json_of_link = [](const Link& link) {
    return ordered_json{{"ranks", {link.first, link.second}},
                        {"same_host", link.same_host},
                        {"gb_per_second", link.bytes_per_second * 1e-9},
                        {"microseconds", link.seconds * 1e6},
                        {"right", link.right}};
  };
  report["links"] = ordered_json::array();
  for (const Link& link : diagnosis.links) report["links"].push_back(json_of_link(link));
  report["slowest_link"] = diagnosis.slowest() ? json_of_link(*diagnosis.slowest()) : ordered_json();
  report["collectives"] = ordered_json::array();
  for (const Collective& collective : diagnosis.collectives)
    report["collectives"].push_back({{"name", collective.name},
                                     {"bytes", collective.bytes},
                                     {"microseconds", collective.seconds * 1e6},
                                     {"right", collective.right}});
  report["exchange_modes"] = ordered_json::array();
  for (const ModeResult& mode : diagnosis.modes)
    report["exchange_modes"].push_back(
        {{"exchange", name_of(mode.exchange)}, {"microseconds", mode.seconds * 1e6}, {"right", mode.right}});
  report["faults"] = ordered_json::array();
  for (const Fault& fault : diagnosis.faults)
    report["faults"].push_back({{"severity", name_of(fault.severity)},
                                {"ranks", fault.ranks},
                                {"problem", fault.problem},
                                {"do", fault.remedy}});
  report["serious"] = is_serious(diagnosis.faults);
  return report;
}

}  // namespace

int doctor(const DoctorOptions& options, const RankPlace& place) {
  Communicator& control = place.control;
  const bool leads = control.rank() == 0;
  std::optional<Execution> execution;
  agree_on(control, "open", [&] { execution.emplace(options.execution, place); });
  Progress progress(leads);
  progress.show("comparing ranks");
  Diagnosis diagnosis;
  diagnosis.facts = facts_of_ranks(control, *execution);
  diagnosis.faults = faults_of(diagnosis.facts);

  // Ranks of other versions or transports cannot make calls together.
  const bool comparable = std::all_of(diagnosis.facts.begin(), diagnosis.facts.end(), [&](const RankFacts& facts) {
    return facts.version == diagnosis.facts[0].version && facts.transport == diagnosis.facts[0].transport;
  });
  if (comparable) {
    execution->connect();
    execution->device().activate();
    std::vector<std::string> hosts;
    for (const RankFacts& facts : diagnosis.facts) hosts.push_back(facts.host);
    progress.show("exercising links");
    diagnosis.links = exercise_links(execution->communicator(), control, execution->device(), hosts, options.bytes,
                                     options.iterations);
    progress.show("exercising collectives");
    diagnosis.collectives = exercise_collectives(execution->communicator(), control, execution->device(), options.bytes,
                                                 options.iterations);
    progress.show("exercising exchange modes");
    diagnosis.modes = ModeExercise(*execution, control).run(options.iterations);
    for (const Fault& fault : faults_of(diagnosis.links)) diagnosis.faults.push_back(fault);
    add_wrong_results(diagnosis);
  }
  progress.show("");
  agree_on(control, "report", [&] {
    if (!leads) return;
    const std::string head =
        fmt::format("# cpnsa doctor: {} rank{} on {} host{} ({}), {} ({}), messages of {} bytes, the fastest of {}\n",
                    control.size(), control.size() == 1 ? "" : "s", diagnosis.hosts(),
                    diagnosis.hosts() == 1 ? "" : "s", name_of(execution->transport()), execution->device().name(),
                    execution->device().description(), options.bytes, options.iterations);
    print_report(options.json, text_of(diagnosis, head), json_of(diagnosis, *execution).dump(2) + "\n");
  });
  return is_serious(diagnosis.faults) ? 1 : 0;
}

}  // namespace cpnsa::tool
