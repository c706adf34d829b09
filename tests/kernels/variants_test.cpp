// The ops of the layer's variants, one at a time: sinks and the rotation of rows.

#include <cmath>
#include <limits>

#include "tests/kernels/kernel_test.hpp"

namespace cpnsa::test {
namespace {

CPNSA_KERNEL_SUITE(VariantOps);

// Log-sum-exps far below and far above the sink, and of no key.
Values log_sum_exps(std::size_t count) {
  Values values;
  for (std::size_t i = 0; i < count; ++i)
    values.push_back(i % 7 == 0 ? -std::numeric_limits<double>::infinity() : 20 * std::sin(static_cast<double>(i)));
  return values;
}

TEST_P(VariantOps, AddSinks) {
  for_each_case([&](const OpCase& op_case) {
    RankShare share(op_case, make_partition(PartitionKind::contiguous, op_case.problem, 1), 0, device());
    const auto heads = static_cast<std::size_t>(op_case.config().num_q_heads);
    const auto count = static_cast<std::size_t>(share.plan.rows) * heads;
    const Values before = round_to(accumulate_dtype(op_case.dtype), log_sum_exps(count));
    const Values o = round_to(op_case.dtype, op_case.truth.o_win);
    const Values sink = round_to(op_case.dtype, Random(3).normals(op_case.config().num_q_heads));
    const DeviceBuffer out = share.input(o), log_sum_exp = share.accumulated(before), sinks = share.input(sink);
    auto arguments = share.op<AddSinks>();
    arguments.rows = share.plan.rows;
    arguments.sinks = sinks.data();
    arguments.out = out.data();
    arguments.log_sum_exp = log_sum_exp.data();
    device().run(arguments, Stream{});

    Values expected, expected_lse;
    const auto d_v = static_cast<std::size_t>(op_case.config().head_dim_v);
    for (std::size_t pair = 0; pair < count; ++pair) {
      const double keys = std::exp(before[pair]), all = keys + std::exp(sink[pair % heads]);
      expected_lse.push_back(std::log(all));
      for (std::size_t c = 0; c < d_v; ++c) expected.push_back(keys / all * o[pair * d_v + c]);
    }
    const double wide = op_case.dtype == DType::f64 ? 1e-14 : 1e-5;
    ASSERT_TRUE(within("log_sum_exp", share.accumulated_values(log_sum_exp), expected_lse, wide));
    ASSERT_TRUE(within("out", share.values(out), expected,
                       derived_tolerance(relative_error(round_to(op_case.dtype, expected), expected), 2, op_case.dtype,
                                         op_case.dtype)));
  });
}

TEST_P(VariantOps, AddSinksBackward) {
  for_each_case([&](const OpCase& op_case) {
    RankShare share(op_case, make_partition(PartitionKind::contiguous, op_case.problem, 1), 0, device());
    const auto heads = static_cast<std::size_t>(op_case.config().num_q_heads);
    const auto count = static_cast<std::size_t>(share.plan.rows) * heads;
    const DType wide = accumulate_dtype(op_case.dtype);
    Values after = log_sum_exps(count);
    for (double& value : after) value = std::abs(value) < 100 ? std::abs(value) : 1;  // at least the sink's own
    after = round_to(wide, std::move(after));
    const Values sink = round_to(op_case.dtype, Random(3).normals(op_case.config().num_q_heads));
    const Values deltas = round_to(wide, Random(4).normals(static_cast<std::int64_t>(count)));
    const Values start = round_to(wide, Random(5).normals(op_case.config().num_q_heads));
    const DeviceBuffer log_sum_exp = share.accumulated(after), delta = share.accumulated(deltas),
                       sinks = share.input(sink), dsinks = share.accumulated(start);
    auto arguments = share.op<AddSinksBackward>();
    arguments.rows = share.plan.rows;
    arguments.sinks = sinks.data();
    arguments.log_sum_exp = log_sum_exp.data();
    arguments.deltas = delta.data();
    arguments.dsinks = dsinks.data();
    device().run(arguments, Stream{});

    Values expected = start;
    double size = 0;
    for (std::size_t pair = 0; pair < count; ++pair) {
      const double term = std::exp(sink[pair % heads] - after[pair]) * deltas[pair];
      expected[pair % heads] -= term;
      size += std::abs(term);
    }
    const double rounding = op_case.dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
    ASSERT_TRUE(within("dsinks", share.accumulated_values(dsinks), expected, 16 * rounding, 16 * rounding * size));
  });
}

TEST_P(VariantOps, RotateRows) {
  for_each_case([&](const OpCase& op_case) {
    const Config& config = op_case.config();
    const std::int64_t pairs = config.head_dim_qk / 2, heads = config.num_kv_heads, dim = config.head_dim_qk;
    if (pairs == 0) return;
    RankShare share(op_case, make_partition(PartitionKind::contiguous, op_case.problem, 1), 0, device());
    const DType wide = accumulate_dtype(op_case.dtype);
    const std::int64_t rows = 9;  // of which 2, 5, 6, 7 are rotated, by the angles 1, 0, 1, 2
    const DeviceListBuffer<RowRange> ranges(device(), {{1, 2, 1}, {0, 5, 3}});
    Values cos, sin;
    for (const double angle : Random(6).normals(3 * pairs)) {
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
    cos = round_to(wide, std::move(cos)), sin = round_to(wide, std::move(sin));
    const DeviceBuffer cos_memory = share.accumulated(cos), sin_memory = share.accumulated(sin);
    for (const DType type : {op_case.dtype, wide})
      for (const bool interleaved : {false, true})
        for (const bool inverse : {false, true}) {
          const Values start = round_to(type, Random(7).normals(rows * heads * dim));
          const DeviceBuffer data(device(), type, start);
          device().run(RotateRows{.data = data.data(),
                                  .cos = cos_memory.data(),
                                  .sin = sin_memory.data(),
                                  .heads = heads,
                                  .dim = dim,
                                  .pairs = pairs,
                                  .interleaved = interleaved,
                                  .inverse = inverse,
                                  .dtype = type,
                                  .ranges = ranges.view()},
                       Stream{});
          Values expected = start;
          const auto rotate = [&](std::int64_t row, std::int64_t angle) {
            for (std::int64_t head = 0; head < heads; ++head)
              for (std::int64_t pair = 0; pair < pairs; ++pair) {
                const std::int64_t base = (row * heads + head) * dim;
                const auto first = static_cast<std::size_t>(base + (interleaved ? 2 * pair : pair));
                const auto second = static_cast<std::size_t>(base + (interleaved ? 2 * pair + 1 : pairs + pair));
                const auto at = static_cast<std::size_t>(angle * pairs + pair);
                const double s = inverse ? -sin[at] : sin[at];
                expected[first] = start[first] * cos[at] - start[second] * s;
                expected[second] = start[first] * s + start[second] * cos[at];
              }
          };
          rotate(2, 1), rotate(5, 0), rotate(6, 1), rotate(7, 2);
          const double rounding = type == DType::f64   ? 0x1p-52
                                  : type == DType::f32 ? 0x1p-23
                                  : type == DType::f16 ? 0x1p-11
                                                       : 0x1p-8;
          ASSERT_TRUE(within("rows", data.values(type), expected, rounding));
        }
  });
}

}  // namespace
}  // namespace cpnsa::test
