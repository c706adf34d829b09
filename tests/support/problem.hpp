#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "cpnsa/schema.hpp"
#include "tests/support/numbers.hpp"

namespace cpnsa::test {

template <class Tensor>
struct Branches {
  Tensor cmp, slc, win;
};

template <class Tensor>
struct CompressorSet {
  Tensor pos, weight, w1, b1, w2, b2;
};

/// One item for every tensor of a layer that has a gradient. The members have the names of those of AttentionInputs and
/// AttentionGradients, so that schema::for_each_tensor() can iterate over several of them at once.
template <class Tensor>
struct TensorSet {
  Tensor q;
  Branches<Tensor> k, v;
  Tensor gate;
  Tensor q_cmp;
  CompressorSet<Tensor> compress_k, compress_v;
  Tensor sink_slc, sink_win;
};

using schema::for_each_parameter;
using schema::for_each_tensor;
using schema::for_each_token_tensor;

using Shape = std::vector<std::int64_t>;
std::int64_t elements_of(const Shape& shape);

/// Shapes for `rows` tokens. Parameters that the compressor does not use have no elements.
TensorSet<Shape> shapes_of(const Config& config, std::int64_t rows);

/// Inputs or gradients of one layer over a whole packed sequence; an empty tensor is not given. If the branches share
/// their keys (or values), `cmp` is the tensor of all three, or its gradient, and `slc` and `win` are empty.
using Tensors = TensorSet<Values>;

/// All inputs of the algorithm for one packed sequence, in one process.
struct Problem {
  Config config;
  std::vector<std::int64_t> cu_seqlens{0};
  Tensors inputs;
  Values dout;  ///< [T, H, d_v]
  bool shared_k = false;
  bool shared_v = false;
  std::vector<std::int32_t> given_selection;  ///< [T, G, n], in place of importance, or none
  Values rotation_cos, rotation_sin;          ///< [summaries of the longest document, pairs] of the summaries, or none
  bool rotation_interleaved = false;
  std::uint64_t seed = 0;  ///< the argument of random_problem()

  std::int64_t tokens() const { return cu_seqlens.back(); }
};

/// The seed and the properties of the problem, for the message of a failed check.
std::string describe(const Problem& problem);
std::ostream& operator<<(std::ostream& stream, const Problem& problem);

struct ProblemOptions {
  bool shared_k = true;
  bool shared_v = true;
  bool pos_k = true;
  bool pos_v = true;
  bool q_cmp = false;  ///< a query of its own for the compressed branch
  bool sinks = false;
  std::int64_t rotated_pairs = 0;  ///< of summaries of keys
};

/// A problem with normally distributed inputs.
Problem make_problem(const Config& config, std::vector<std::int64_t> cu_seqlens, std::uint64_t seed,
                     const ProblemOptions& options = {});

/// A small problem with a random valid configuration; problem.cpp lists its corner cases. Head dimensions and hidden
/// widths are multiples of `dim_step`.
Problem random_problem(std::uint64_t seed, std::int64_t max_tokens, std::int64_t dim_step = 1);

/// The problem with every tensor rounded to the type.
Problem rounded(Problem problem, DType dtype);

/// The cu_seqlens of documents of the given lengths.
std::vector<std::int64_t> cu_seqlens_of(const std::vector<std::int64_t>& lengths);

struct Document {
  std::int64_t begin;  ///< first token
  std::int64_t length;
};
/// The document of a token.
Document document_of(const std::vector<std::int64_t>& cu_seqlens, std::int64_t token);

}  // namespace cpnsa::test
