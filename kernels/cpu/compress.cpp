#include "kernels/cpu/activation.hpp"
#include "kernels/cpu/query_tile.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/summary_tile.hpp"

namespace cpnsa::cpu {
namespace {

template <class T, class A>
void write(const Compress& a, std::int64_t group, const std::vector<SummaryRows>& tile, const A* y, const T* bias) {
  const auto summaries = rows_of_group(static_cast<T*>(a.summaries), *a.config, group, a.dim);
  for (std::size_t i = 0; i < tile.size(); ++i) {
    const A* const row = y + static_cast<std::int64_t>(i) * padded<A>(a.dim);
    T* const destination = summaries.row(tile[i].summary);
    for (std::int64_t c = 0; c < a.dim; ++c)
      destination[c] = narrow<T>(bias ? row[c] + static_cast<A>(widen(bias[c])) : row[c]);
  }
}

template <class T>
void mean(const Compress& a, const std::vector<SummaryRows>& tile) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  Buffer<A> sum(a.dim), x(a.dim), p(a.dim);
  for (std::int64_t group = 0; group < config.num_kv_heads; ++group) {
    const auto input = rows_of_group(static_cast<const T*>(a.input), config, group, a.dim);
    const auto output = rows_of_group(static_cast<T*>(a.summaries), config, group, a.dim);
    const T* const pos = of_group<const T>(a.parameters.pos, group, config.compress_block * a.dim);
    for (const SummaryRows& summary : tile) {
      std::fill_n(sum.data(), a.dim, A{0});
      for (std::int64_t token = 0; token < config.compress_block; ++token) {
        widen_row(input.row(summary.source + token), a.dim, x.data());
        if (pos) widen_row(pos + token * a.dim, a.dim, p.data());
        for (std::int64_t c = 0; c < a.dim; ++c) sum[c] += x[c] + p[c];
      }
      T* const destination = output.row(summary.summary);
      for (std::int64_t c = 0; c < a.dim; ++c)
        destination[c] = narrow<T>(sum[c] / static_cast<A>(config.compress_block));
    }
  }
}

template <class T>
void linear(const Compress& a, const std::vector<SummaryRows>& tile) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  const std::int64_t depth = config.compress_block * a.dim;
  SummaryProjection<T> projection(a.dim, config.compress_block, a.dim);
  Buffer<A> y(summaries_per_tile * padded<A>(a.dim));
  for (std::int64_t group = 0; group < config.num_kv_heads; ++group) {
    projection.apply(rows_of_group(static_cast<const T*>(a.input), config, group, a.dim),
                     of_group<const T>(a.parameters.pos, group, depth),
                     of_group<const T>(a.parameters.weight, group, depth * a.dim), tile, y.data());
    write<T, A>(a, group, tile, y.data(), nullptr);
  }
}

template <class T>
void mlp(const Compress& a, const std::vector<SummaryRows>& tile) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  const std::int64_t depth = config.compress_block * a.dim, hidden = a.hidden;
  const std::int64_t hidden_stride = padded<A>(hidden), stride = padded<A>(a.dim);
  const auto summaries = static_cast<std::int64_t>(tile.size());
  SummaryProjection<T> projection(a.dim, config.compress_block, hidden);
  Buffer<A> z(summaries_per_tile * hidden_stride), y(summaries_per_tile * stride), w2(hidden * stride);
  for (std::int64_t group = 0; group < config.num_kv_heads; ++group) {
    projection.apply(rows_of_group(static_cast<const T*>(a.input), config, group, a.dim),
                     of_group<const T>(a.parameters.pos, group, depth),
                     of_group<const T>(a.parameters.w1, group, depth * hidden), tile, z.data());
    const T* const b1 = of_group<const T>(a.parameters.b1, group, hidden);
    for (std::int64_t i = 0; i < summaries; ++i)
      for (std::int64_t j = 0; j < hidden; ++j) {
        A& h = z[i * hidden_stride + j];
        h = activate<A>(config.activation, h + (b1 ? widen(b1[j]) : A{0})).value;
      }
    widen_matrix(of_group<const T>(a.parameters.w2, group, hidden * a.dim), a.dim, hidden, w2.data());
    multiply<Product::assign, A>({z.data(), hidden_stride, 1}, {w2.data(), stride}, {y.data(), stride}, summaries,
                                 a.dim, hidden);
    write<T, A>(a, group, tile, y.data(), of_group<const T>(a.parameters.b2, group, a.dim));
  }
}

template <class T>
void compress_tile(const Compress& a, const std::vector<SummaryRows>& tile) {
  switch (a.config->compressor) {
    case Compressor::mean: return mean<T>(a, tile);
    case Compressor::linear: return linear<T>(a, tile);
    case Compressor::mlp: return mlp<T>(a, tile);
  }
}

}  // namespace

template <>
void run_op(const Compress& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) {
    for_each_summary_tile(a.runs, a.config->compress_stride,
                          [&](const std::vector<SummaryRows>& tile) { compress_tile<T>(a, tile); });
  });
}

}  // namespace cpnsa::cpu
