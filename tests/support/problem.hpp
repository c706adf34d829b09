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

/// One of something for every tensor of a layer that has a gradient. The members are named as those of AttentionInputs
/// and AttentionGradients, so that schema::for_each_tensor() walks them all side by side.
template <class Tensor>
struct TensorSet {
  Tensor q;
  Branches<Tensor> k, v;
  Tensor gate;
  CompressorSet<Tensor> compress_k, compress_v;
};

using schema::for_each_parameter;
using schema::for_each_tensor;
using schema::for_each_token_tensor;

using Shape = std::vector<std::int64_t>;
std::int64_t elements_of(const Shape& shape);

/// Shapes for `rows` tokens. Parameters that the compressor has no use for have no elements.
TensorSet<Shape> shapes_of(const Config& config, std::int64_t rows);

/// Inputs, or gradients, of one layer over a whole packed sequence; an empty tensor was not given. Where the branches
/// share their keys (or values), `slc` and `win` are empty: `cmp` is the tensor of all three, or its gradient.
using Tensors = TensorSet<Values>;

/// One packed sequence on one process: everything the algorithm takes.
struct Problem {
  Config config;
  std::vector<std::int64_t> cu_seqlens{0};
  Tensors inputs;
  Values dout;  ///< [T, H, d_v]
  bool shared_k = false;
  bool shared_v = false;
  std::uint64_t seed = 0;  ///< what random_problem() was given

  std::int64_t tokens() const { return cu_seqlens.back(); }
};

/// The seed and every property that matters, for the message of a failed check.
std::string describe(const Problem& problem);
std::ostream& operator<<(std::ostream& stream, const Problem& problem);

struct ProblemOptions {
  bool shared_k = true;
  bool shared_v = true;
  bool pos_k = true;
  bool pos_v = true;
};

/// Normal inputs for a given configuration and documents.
Problem make_problem(const Config& config, std::vector<std::int64_t> cu_seqlens, std::uint64_t seed,
                     const ProblemOptions& options = {});

/// A small problem with any configuration that is valid: see problem.cpp for the corners it visits.
/// Widths of heads and hidden layers are multiples of `dim_step`.
Problem random_problem(std::uint64_t seed, std::int64_t most_tokens, std::int64_t dim_step = 1);

/// The same with every tensor rounded to the type.
Problem rounded(Problem problem, DType dtype);

/// Documents of the given lengths.
std::vector<std::int64_t> cu_seqlens_of(const std::vector<std::int64_t>& lengths);

/// Document that owns each token's position, for loops over tokens: (first token, length) of token t's document.
struct Document {
  std::int64_t begin;
  std::int64_t length;
};
Document document_of(const std::vector<std::int64_t>& cu_seqlens, std::int64_t token);

}  // namespace cpnsa::test
