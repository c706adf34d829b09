#include "cpnsa/forecast.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "backends/backends.hpp"
#include "cpnsa/decode_forecast.hpp"
#include "src/bindings.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

nb::dict parts_of(const std::vector<MemoryPart>& parts) {
  nb::dict all;
  for (const MemoryPart& part : parts) all[part.name.c_str()] = part.bytes;
  return all;
}

nb::dict seconds_of(const ByWork& seconds) {
  nb::dict all;
  for (const WorkKind kind : enum_values<WorkKind>) all[name_of(kind).data()] = seconds[static_cast<std::size_t>(kind)];
  return all;
}

nb::dict facts_of(const RankForecast& rank) {
  nb::dict received, all;
  for (const Traffic traffic : enum_values<Traffic>)
    received[name_of(traffic).data()] = rank.bytes_received[static_cast<std::size_t>(traffic)];
  all["rank"] = rank.rank;
  all["rows"] = rank.rows;
  all["saved_bytes"] = rank.saved_bytes;
  all["saved"] = parts_of(rank.saved);
  all["workspace_bytes"] = rank.workspace_bytes;
  all["forward_workspace"] = parts_of(rank.forward);
  all["backward_workspace"] = parts_of(rank.backward);
  all["list_bytes"] = rank.list_bytes;
  all["bytes_received"] = received;
  all["blocks_needed"] = rank.blocks_needed;
  all["blocks_fetched"] = rank.blocks_fetched;
  all["forward_compute_seconds"] = seconds_of(rank.forward_compute);
  all["backward_compute_seconds"] = seconds_of(rank.backward_compute);
  all["forward_seconds"] = rank.forward_seconds;
  all["backward_seconds"] = rank.backward_seconds;
  return all;
}

nb::dict forecast_layer(const Config& config, const std::vector<std::int64_t>& cu_seqlens, int ranks,
                        std::string_view partition, std::string_view dtype, std::string_view exchange,
                        std::string_view gpu, std::string_view picks, bool backward, bool refetch_blocks,
                        bool recompute_branches, bool reuse_saved) {
  ForecastOptions options;
  options.attention.dtype = named<DType>("dtype", dtype);
  options.attention.exchange = named<Exchange>("exchange", exchange);
  options.attention.backward = backward;
  options.attention.refetch_blocks = refetch_blocks;
  options.attention.recompute_branches = recompute_branches;
  options.attention.reuse_saved = reuse_saved;
  options.picks = named<PickPattern>("picks", picks);
  const LayerForecast layer = forecast(
      config, Partition::make(named<PartitionKind>("partition", partition), cu_seqlens, config.select_block, ranks),
      options, built_in_compute(gpu, options.picks), built_in_network());
  nb::dict all;
  all["ranks"] = layer.ranks;
  all["exchange"] = name_of(layer.exchange);
  all["scratch_estimated"] = layer.scratch_estimated;
  all["saved_bytes"] = layer.max_saved_bytes;
  all["workspace_bytes"] = layer.max_workspace_bytes;
  all["forward_seconds"] = layer.forward_seconds;
  all["backward_seconds"] = layer.backward_seconds;
  all["compute_seconds"] = layer.compute_seconds;
  all["exposed_seconds"] = layer.exposed_seconds;
  nb::list of_ranks;
  for (const RankForecast& rank : layer.of_ranks) of_ranks.append(facts_of(rank));
  all["of_ranks"] = of_ranks;
  return all;
}

nb::dict forecast_decoding(const Config& config, int ranks, std::int64_t length, std::int64_t sequences,
                           std::int64_t queries, std::int64_t page, std::string_view dtype, bool shared_branches,
                           bool replicate_summaries, std::string_view gpu) {
  DecodeForecastOptions options;
  options.decoder.cache.dtype = named<DType>("dtype", dtype);
  options.decoder.cache.page = page;
  options.decoder.cache.shared_branches = shared_branches;
  options.decoder.cache.replicate_summaries = replicate_summaries;
  options.decoder.max_sequences = sequences;
  options.decoder.max_tokens = sequences * queries;
  options.decoder.max_length = length;
  if (backends::has_cuda) options.memory = backends::cuda_decode_memory;
  const DecodeForecast layer = forecast_decode(config, ranks, options, built_in_decode(gpu), built_in_network());
  nb::dict all, received;
  for (const DecodeTraffic traffic : enum_values<DecodeTraffic>)
    received[name_of(traffic).data()] = layer.bytes_received[static_cast<std::size_t>(traffic)];
  all["ranks"] = layer.ranks;
  all["device_counted"] = layer.device_counted;
  all["messages"] = layer.messages;
  all["bytes_received"] = received;
  all["read_bytes"] = layer.read_bytes;
  all["seconds"] = layer.seconds();
  all["message_seconds"] = layer.message_seconds;
  nb::list of_ranks;
  for (const DecodeRankForecast& rank : layer.of_ranks) {
    nb::dict facts;
    facts["rank"] = rank.rank;
    facts["cache"] = parts_of(rank.cache);
    facts["cache_bytes"] = rank.cache_bytes;
    facts["workspace_bytes"] = rank.workspace_bytes;
    facts["schedule_bytes"] = rank.schedule_bytes;
    of_ranks.append(facts);
  }
  all["of_ranks"] = of_ranks;
  return all;
}

}  // namespace

void bind_forecast(nb::module_& module) {
  using namespace nb::literals;
  module.def("forecast", &forecast_layer, "config"_a, "cu_seqlens"_a, "ranks"_a, nb::kw_only(),
             "partition"_a = "zigzag", "dtype"_a = "bf16", "exchange"_a = "auto", "gpu"_a = "h200",
             "picks"_a = "random", "backward"_a = true, "refetch_blocks"_a = true, "recompute_branches"_a = false,
             "reuse_saved"_a = false,
             "Bytes by part, messages and times of a layer on a number of ranks, without a GPU. docs/planning.md "
             "describes the model; `cpnsa plan` prints it.");
  module.def("forecast_decode", &forecast_decoding, "config"_a, "ranks"_a, nb::kw_only(), "length"_a, "sequences"_a = 1,
             "queries"_a = 1, "page"_a = 0, "dtype"_a = "bf16", "shared_branches"_a = true,
             "replicate_summaries"_a = false, "gpu"_a = "h200",
             "Bytes by part, messages and times of a layer's decoding step on a number of ranks, without a GPU. "
             "docs/planning.md describes the model; `cpnsa plan --decode` prints it.");
}

}  // namespace cpnsa::python
