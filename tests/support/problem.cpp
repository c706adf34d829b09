#include "tests/support/problem.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <ostream>

namespace cpnsa::test {
namespace {

Config random_config(Random& random, std::int64_t dim_step) {
  const std::int64_t max_dim = dim_step == 1 ? 20 : 8;
  Config config;
  config.num_kv_heads = random.integer(1, 3);
  config.num_q_heads = config.num_kv_heads * random.integer(1, random.chance(0.2) ? 8 : 3);
  config.head_dim_qk = dim_step * random.integer(1, max_dim);
  config.head_dim_v = random.chance(0.3) ? config.head_dim_qk : dim_step * random.integer(1, max_dim);
  config.compress_stride = random.pick<std::int64_t>({1, 2, 3, 4, 8});
  config.compress_block = config.compress_stride * random.pick<std::int64_t>({1, 1, 2, 2, 3, 4});
  config.select_block = config.compress_block;  // sometimes l = m
  if (random.chance(0.8))
    while (config.select_block < 2 * config.compress_block && config.select_block < 16)
      config.select_block += config.compress_stride * random.integer(1, 3);
  config.select_count = random.integer(1, random.chance(0.2) ? 40 : 6);
  config.init_blocks = random.integer(0, std::min<std::int64_t>(2, config.select_count));
  config.local_blocks = random.integer(0, std::min<std::int64_t>(3, config.select_count - config.init_blocks));
  config.window = random.pick<std::int64_t>({1, 2, 5, 17, 40, 100000});
  if (random.chance(0.3)) config.softmax_scale = 0.1 + random.uniform();
  config.compressor = random.pick(enum_values<Compressor>);
  config.activation = random.pick(enum_values<Activation>);
  config.gate = random.pick(enum_values<GateKind>);
  config.compress_hidden_k = dim_step * random.integer(1, 9);
  config.compress_hidden_v = dim_step * random.integer(1, 9);
  return config;
}

std::vector<std::int64_t> random_documents(Random& random, std::int64_t max_tokens) {
  const double kind = random.uniform();
  if (kind < 0.1) return {0, random.integer(1, 3)};
  if (kind < 0.4) return {0, random.integer(1, max_tokens)};
  // Many tiny documents, or a few of any size; some are empty.
  const std::int64_t max_length = kind < 0.6 ? 5 : max_tokens / 2;
  std::vector<std::int64_t> lengths;
  for (std::int64_t left = random.integer(1, max_tokens); left > 0;) {
    const std::int64_t length = std::min(left, random.integer(random.chance(0.2) ? 0 : 1, max_length));
    lengths.push_back(length);
    left -= length;
  }
  if (random.chance(0.2)) lengths.push_back(0);
  return cu_seqlens_of(lengths);
}

}  // namespace

std::int64_t elements_of(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

TensorSet<Shape> shapes_of(const Config& config, std::int64_t rows) {
  TensorSet<Shape> shapes;
  for_each_tensor(
      [&](const schema::Tensor& tensor, Shape& shape) {
        const auto sizes = schema::sizes_of(tensor.shape, config, rows);
        shape = tensor.used_by(config.compressor) ? Shape(sizes.begin(), sizes.end()) : Shape{0};
      },
      shapes);
  return shapes;
}

std::string describe(const Problem& problem) {
  return fmt::format("seed {}: {}; cu_seqlens [{}]; shared k {}, v {}; pos k {}, v {}", problem.seed,
                     problem.config.describe(), fmt::join(problem.cu_seqlens, ", "), problem.shared_k, problem.shared_v,
                     !problem.inputs.compress_k.pos.empty(), !problem.inputs.compress_v.pos.empty());
}

std::ostream& operator<<(std::ostream& stream, const Problem& problem) {
  return stream << describe(problem);
}

Problem make_problem(const Config& config, std::vector<std::int64_t> cu_seqlens, std::uint64_t seed,
                     const ProblemOptions& options) {
  Random random(seed);
  Problem problem;
  problem.config = config;
  problem.cu_seqlens = std::move(cu_seqlens);
  problem.shared_k = options.shared_k;
  problem.shared_v = options.shared_v;
  problem.seed = seed;

  const std::int64_t rows = problem.tokens();
  const TensorSet<Shape> shapes = shapes_of(config, rows);
  // Tensors of options come last, so that a seed gives the same numbers to the rest with and without them.
  for_each_token_tensor(
      [&](const schema::Tensor& tensor, Values& values, const Shape& shape) {
        if (tensor.option.empty()) values = random.normals(elements_of(shape));
      },
      problem.inputs, shapes);
  for_each_parameter(
      [&](const schema::Tensor& tensor, Values& values, const Shape& shape) {
        if (!tensor.option.empty()) return;
        // Weights are scaled by their fan-in, so that summaries have about the norm of keys.
        const double fan_in = shape.size() == 3 ? static_cast<double>(shape[1]) : 4.0;
        values = random.normals(elements_of(shape), 1.0 / std::sqrt(fan_in));
      },
      problem.inputs, shapes);
  problem.dout = random.normals(rows * config.num_q_heads * config.head_dim_v);

  if (options.shared_k) problem.inputs.k.slc = problem.inputs.k.win = {};
  if (options.shared_v) problem.inputs.v.slc = problem.inputs.v.win = {};
  if (!options.pos_k) problem.inputs.compress_k.pos = {};
  if (!options.pos_v) problem.inputs.compress_v.pos = {};
  if (options.q_cmp) problem.inputs.q_cmp = random.normals(elements_of(shapes.q_cmp));
  if (options.sinks) problem.inputs.sink_slc = random.normals(config.num_q_heads);
  if (options.sinks) problem.inputs.sink_win = random.normals(config.num_q_heads);
  if (options.rotated_pairs > 0)
    for (std::int64_t i = 0; i < config.summaries_of(rows) * options.rotated_pairs; ++i) {
      const double angle = 6 * random.uniform();
      problem.rotation_cos.push_back(std::cos(angle));
      problem.rotation_sin.push_back(std::sin(angle));
    }
  return problem;
}

Problem random_problem(std::uint64_t seed, std::int64_t max_tokens, std::int64_t dim_step) {
  Random random(seed);
  const Config config = random_config(random, dim_step);
  const std::vector<std::int64_t> documents = random_documents(random, max_tokens);
  const ProblemOptions options{.shared_k = random.chance(0.5),
                               .shared_v = random.chance(0.5),
                               .pos_k = random.chance(0.7),
                               .pos_v = random.chance(0.7)};
  return make_problem(config, documents, seed, options);
}

Problem rounded(Problem problem, DType dtype) {
  for_each_tensor([&](auto, Values& values) { values = round_to(dtype, std::move(values)); }, problem.inputs);
  problem.dout = round_to(dtype, std::move(problem.dout));
  problem.rotation_cos = round_to(accumulate_dtype(dtype), std::move(problem.rotation_cos));
  problem.rotation_sin = round_to(accumulate_dtype(dtype), std::move(problem.rotation_sin));
  return problem;
}

std::vector<std::int64_t> cu_seqlens_of(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> bounds{0};
  for (const std::int64_t length : lengths) bounds.push_back(bounds.back() + length);
  return bounds;
}

Document document_of(const std::vector<std::int64_t>& cu_seqlens, std::int64_t token) {
  const auto end = std::upper_bound(cu_seqlens.begin(), cu_seqlens.end(), token);
  return {*(end - 1), *end - *(end - 1)};
}

}  // namespace cpnsa::test
