#include "kernels/cpu/activation.hpp"
#include "kernels/cpu/query_tile.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/summary_tile.hpp"

namespace cpnsa::cpu {
namespace {

// gradient [rows, columns] += panel [rows, padded(columns)]
template <class A>
void add_panel(const A* panel, std::int64_t rows, std::int64_t columns, A* gradient) {
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t c = 0; c < columns; ++c) gradient[i * columns + c] += panel[i * padded<A>(columns) + c];
}

// gradient [columns] += the sum of the panel's rows; a null gradient is not computed.
template <class A>
void add_column_sums(const A* panel, std::int64_t rows, std::int64_t columns, std::int64_t stride, A* gradient) {
  if (!gradient) return;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t c = 0; c < columns; ++c) gradient[c] += panel[i * stride + c];
}

template <class T>
class CompressGradients {
 public:
  using A = Arithmetic<T>;

  explicit CompressGradients(const CompressBackward& arguments)
      : a_(arguments),
        config_(*arguments.config),
        depth_(config_.compress_block * a_.dim),
        columns_(config_.compressor == Compressor::mlp ? a_.hidden : a_.dim),
        chunk_(tokens_per_chunk(a_.dim, config_.compress_block) * a_.dim),
        inputs_(a_.dim, config_.compress_block),
        projection_(a_.dim, config_.compress_block, columns_),
        dy_(summaries_per_tile * padded<A>(a_.dim)),
        z_(summaries_per_tile * padded<A>(columns_)),
        h_(summaries_per_tile * padded<A>(columns_)),
        dz_(summaries_per_tile * padded<A>(columns_)),
        dinput_(summaries_per_tile * padded<A>(chunk_)),
        weights_(columns_ * padded<A>(chunk_)),
        dweights_(chunk_ * padded<A>(columns_)),
        w2_(a_.dim * padded<A>(columns_)),
        dw2_(columns_ * padded<A>(a_.dim)) {}

  void add(const std::vector<SummaryRows>& tile) {
    for (std::int64_t group = 0; group < config_.num_kv_heads; ++group) {
      load_dsummaries(tile, group);
      switch (config_.compressor) {
        case Compressor::mean: add_mean(tile, group); break;
        case Compressor::linear:
          add_projection(tile, group, dy_.data(), a_.parameters.weight, a_.dparameters.weight);
          break;
        case Compressor::mlp:
          add_second_layer(tile, group);
          add_projection(tile, group, dz_.data(), a_.parameters.w1, a_.dparameters.w1);
          break;
      }
    }
  }

 private:
  static std::int64_t size(const std::vector<SummaryRows>& tile) { return static_cast<std::int64_t>(tile.size()); }

  Strided<const T> input(std::int64_t group) const {
    return rows_of_group(static_cast<const T*>(a_.input), config_, group, a_.dim);
  }
  const T* pos(std::int64_t group) const { return of_group<const T>(a_.parameters.pos, group, depth_); }
  A* dpos(std::int64_t group) const { return of_group<A>(a_.dparameters.pos, group, depth_); }

  void load_dsummaries(const std::vector<SummaryRows>& tile, std::int64_t group) {
    const auto source = rows_of_group(static_cast<const A*>(a_.dsummaries), config_, group, a_.dim);
    for (std::int64_t i = 0; i < size(tile); ++i)
      std::copy_n(source.row(tile[static_cast<std::size_t>(i)].summary), a_.dim, dy_.data() + i * padded<A>(a_.dim));
  }

  // Adds dx' of the given tokens of every summary to its input rows and to pos.
  void add_inputs(const std::vector<SummaryRows>& tile, std::int64_t group, ColumnRange tokens, const A* dx,
                  std::int64_t summary_stride, std::int64_t token_stride) {
    A* const dposition = dpos(group);
    const auto dinput = a_.dinput ? rows_of_group(static_cast<A*>(a_.dinput), config_, group, a_.dim) : Strided<A>{};
    for (std::int64_t i = 0; i < size(tile); ++i)
      for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
        const A* const source = dx + i * summary_stride + (token - tokens.begin) * token_stride;
        if (dinput.data) add_panel(source, 1, a_.dim, dinput.row(tile[static_cast<std::size_t>(i)].source + token));
        if (dposition) add_panel(source, 1, a_.dim, dposition + token * a_.dim);
      }
  }

  void add_mean(const std::vector<SummaryRows>& tile, std::int64_t group) {
    const std::int64_t stride = padded<A>(a_.dim);
    for (std::int64_t i = 0; i < size(tile) * stride; ++i) dy_[i] /= static_cast<A>(config_.compress_block);
    add_inputs(tile, group, {0, config_.compress_block}, dy_.data(), stride, 0);
  }

  // mlp: computes dz, the gradient of the first layer's output, from dy, and adds to the gradients of b1, w2 and b2.
  void add_second_layer(const std::vector<SummaryRows>& tile, std::int64_t group) {
    const std::int64_t hidden = a_.hidden, summaries = size(tile);
    const std::int64_t stride = padded<A>(a_.dim), hidden_stride = padded<A>(hidden);
    projection_.apply(input(group), pos(group), of_group<const T>(a_.parameters.w1, group, depth_ * hidden), tile,
                      z_.data());
    const T* const w2 = of_group<const T>(a_.parameters.w2, group, hidden * a_.dim);
    widen_transposed(w2, a_.dim, hidden, w2_.data());
    multiply<Product::assign, A>({dy_.data(), stride, 1}, {w2_.data(), hidden_stride}, {dz_.data(), hidden_stride},
                                 summaries, hidden, a_.dim);
    const T* const b1 = of_group<const T>(a_.parameters.b1, group, hidden);
    for (std::int64_t i = 0; i < summaries; ++i)
      for (std::int64_t j = 0; j < hidden; ++j) {
        const std::int64_t at = i * hidden_stride + j;
        const auto activation = activate<A>(config_.activation, z_[at] + (b1 ? widen(b1[j]) : A{0}));
        h_[at] = activation.value;
        dz_[at] *= activation.slope;
      }
    if (A* const dw2 = of_group<A>(a_.dparameters.w2, group, hidden * a_.dim)) {
      multiply<Product::assign, A>({h_.data(), 1, hidden_stride}, {dy_.data(), stride}, {dw2_.data(), stride}, hidden,
                                   a_.dim, summaries);
      add_panel(dw2_.data(), hidden, a_.dim, dw2);
    }
    add_column_sums(dy_.data(), summaries, a_.dim, stride, of_group<A>(a_.dparameters.b2, group, a_.dim));
    add_column_sums(dz_.data(), summaries, hidden, hidden_stride, of_group<A>(a_.dparameters.b1, group, hidden));
  }

  // Adds the gradients of z = x' weight with respect to the weight, the inputs and pos, from dz [summaries, columns].
  void add_projection(const std::vector<SummaryRows>& tile, std::int64_t group, const A* dz, const void* weight,
                      void* dweight) {
    const std::int64_t stride = padded<A>(columns_), summaries = size(tile);
    const T* const w = of_group<const T>(weight, group, depth_ * columns_);
    A* const dw = of_group<A>(dweight, group, depth_ * columns_);
    for_each_token_chunk(a_.dim, config_.compress_block, [&](ColumnRange tokens) {
      const std::int64_t first = tokens.begin * a_.dim, depth = (tokens.end - tokens.begin) * a_.dim;
      if (dw) {  // dW += x'^T dz
        inputs_.load(input(group), pos(group), tile, tokens);
        multiply<Product::assign, A>(inputs_.transposed(), {dz, stride}, {dweights_.data(), stride}, depth, columns_,
                                     summaries);
        add_panel(dweights_.data(), depth, columns_, dw + first * columns_);
      }
      if (a_.dinput || dpos(group)) {  // dx' = dz W^T
        const std::int64_t row = padded<A>(depth);
        widen_transposed(w + first * columns_, columns_, depth, weights_.data());
        multiply<Product::assign, A>({dz, stride, 1}, {weights_.data(), row}, {dinput_.data(), row}, summaries, depth,
                                     columns_);
        add_inputs(tile, group, tokens, dinput_.data(), row, a_.dim);
      }
    });
  }

  const CompressBackward& a_;
  const Config& config_;
  std::int64_t depth_;    // l dim
  std::int64_t columns_;  // width of the first layer's output
  std::int64_t chunk_;    // largest depth of a chunk of tokens
  SummaryInputs<T> inputs_;
  SummaryProjection<T> projection_;
  Buffer<A> dy_;        // [summaries, padded dim]
  Buffer<A> z_;         // [summaries, padded columns]
  Buffer<A> h_;         // [summaries, padded columns]
  Buffer<A> dz_;        // [summaries, padded columns]
  Buffer<A> dinput_;    // [summaries, padded chunk]
  Buffer<A> weights_;   // [columns, padded chunk]
  Buffer<A> dweights_;  // [chunk, padded columns]
  Buffer<A> w2_;        // [dim, padded hidden]
  Buffer<A> dw2_;       // [hidden, padded dim]
};

}  // namespace

template <>
void run_op(const CompressBackward& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) {
    CompressGradients<T> gradients(a);
    for_each_summary_tile(a.runs, a.config->compress_stride,
                          [&](const std::vector<SummaryRows>& tile) { gradients.add(tile); });
  });
}

}  // namespace cpnsa::cpu
