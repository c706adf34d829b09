#include "src/inference/decode_arguments.hpp"

#include <fmt/format.h>

#include <array>
#include <string>

#include "cpnsa/error.hpp"
#include "src/layer/tensor_checks.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {
namespace {

void check_range(const char* name, std::int64_t found, std::int64_t max) {
  if (found < 0 || found > max) throw ArgumentError(fmt::format("{}: found {}, expected 0 to {}", name, found, max));
}

void check_array(const TensorChecks& check, const std::int32_t* array, std::int64_t items, const std::string& name) {
  check.memory(array, to_size(items) * sizeof(std::int32_t), alignof(std::int32_t), name);
}

void check_cache(const DecodePlan& plan, const Device& device, const DecodeBatch& batch, const KvCache& cache) {
  const Config& config = plan.config;
  for (const CachePart part : enum_values<CachePart>) {
    const auto check = [&](const char* kind, const TensorView& view, const TensorView& shared, std::int64_t rows,
                           std::int64_t dim) {
      const std::string name = part == CachePart::summaries ? fmt::format("cache.summaries_{}", kind)
                                                            : fmt::format("cache.{}.{}", kind, name_of(part));
      if (plan.layout.pages_with(part) != part) {
        if (view && view.data != shared.data)
          throw ArgumentError(fmt::format("{}: found pages of its own, expected none, or those of {} (shared_branches)",
                                          name, name_of(plan.layout.pages_with(part))));
        return;
      }
      const std::array<std::int64_t, 4> shape{table_of(plan, part, batch).pool_pages, rows, config.num_kv_heads, dim};
      expect(view, name, plan.options.cache.dtype, shape);
      TensorChecks(config, plan.options.cache.dtype, 0, device)
          .memory(view.data, view.bytes(), size_of(plan.options.cache.dtype), name);
    };
    const PartViews own = views_of(part, cache), shared = views_of(plan.layout.pages_with(part), cache);
    check("k", *own.k, *shared.k, plan.layout.key_rows(part), config.head_dim_qk);
    check("v", *own.v, *shared.v, plan.layout.value_rows(part), config.head_dim_v);
  }
}

}  // namespace

void validate_batch(const DecodePlan& plan, const Device& device, const DecodeBatch& batch, const void* schedule,
                    std::size_t schedule_bytes) {
  check_range("batch.sequences", batch.sequences, plan.options.max_sequences);
  check_range("batch.tokens", batch.tokens, plan.options.max_tokens);
  check_range("batch.num_slots", batch.num_slots, std::int64_t{1} << 31);
  const TensorChecks check(plan.config, plan.options.cache.dtype, batch.tokens, device);
  if (batch.slots) {
    check_array(check, batch.slots, batch.sequences, "batch.slots");
  } else if (batch.num_slots < batch.sequences) {
    throw ArgumentError(fmt::format("batch.num_slots: found {}, expected at least {}, the sequences, without slots",
                                    batch.num_slots, batch.sequences));
  }
  check_array(check, batch.lengths, batch.num_slots, "batch.lengths");
  check_array(check, batch.cu_q, batch.sequences + 1, "batch.cu_q");
  for (const CachePart part : enum_values<CachePart>) {
    const PageTable& table = table_of(plan, part, batch);
    const std::string name = fmt::format("batch.{}", name_of(part));
    check_range((name + ".columns").c_str(), table.columns, std::int64_t{1} << 31);
    check_range((name + ".pool_pages").c_str(), table.pool_pages, std::int64_t{1} << 31);
    check_array(check, table.pages, batch.num_slots * table.columns, name + ".pages");
  }
  check.buffer(schedule, schedule_bytes, "schedule");
}

void validate_step(const DecodePlan& plan, const Device& device, const DecodeArguments& given,
                   std::size_t workspace_bytes) {
  const TensorChecks check(plan.config, plan.options.cache.dtype, given.batch.tokens, device);
  const AttentionInputs& in = given.inputs;
  check.inputs(in);
  if (in.summary_rotation.cos || in.summary_rotation.sin || in.selected)
    throw ArgumentError(fmt::format("{}: found one, expected none: the decoder has neither",
                                    in.selected ? "inputs.selected" : "summary_rotation"));
  if (plan.options.cache.shared_branches && !(in.k.cmp.data == in.k.slc.data && in.k.win.data == in.k.slc.data &&
                                              in.v.cmp.data == in.v.slc.data && in.v.win.data == in.v.slc.data))
    throw ArgumentError("k, v: found different tensors for the branches, expected the same (shared_branches)");
  check_cache(plan, device, given.batch, given.cache);
  check.tensor(given.outputs.out, "out", plan.options.cache.dtype, schema::out_shape);
  const std::int64_t tokens = given.batch.tokens;
  if (given.outputs.selected)
    check_array(check, given.outputs.selected, tokens * plan.config.num_kv_heads * plan.config.select_count,
                "selected");
  if (given.outputs.log_sum_exp)
    check.memory(given.outputs.log_sum_exp, to_size(3 * tokens * plan.config.num_q_heads) * plan.accumulated,
                 plan.accumulated, "log_sum_exp");
  check.buffer(given.workspace, workspace_bytes, "workspace");
}

}  // namespace cpnsa
