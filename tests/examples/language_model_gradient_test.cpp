// The gradient of the whole model, attention and compressors included, against finite differences.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "cpnsa/cpu/device.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "examples/model/transformer.hpp"

namespace cpnsa::test {
namespace {

using namespace model;

constexpr std::int64_t tokens = 300;
constexpr double scale = 1.0 / tokens;

struct Inputs {
  std::vector<std::int32_t> bytes, targets;
};

Inputs pseudorandom_inputs() {
  Inputs inputs;
  std::mt19937 random(3);
  for (std::int64_t i = 0; i < tokens; ++i) {
    inputs.bytes.push_back(static_cast<std::int32_t>(random() % 7 + 'a'));
    inputs.targets.push_back(static_cast<std::int32_t>(random() % 7 + 'a'));
  }
  return inputs;
}

// Moves all parameters a little along a random direction, weighed so that each of `parts` parts of them is tried alone.
void check(const AttentionKind& kind) {
  threads::run_ranks(1, [&](Communicator& communicator) {
    const std::array<std::int64_t, 2> document{0, tokens};
    const Partition partition = Partition::contiguous(document, kind.config.select_block, 1);
    const auto device = cpu::make_device();
    const auto operations = make_operations(*device, DType::f64);
    Parameters parameters(*operations, 5);
    Transformer transformer(parameters, kind, {2, 16, 256}, partition, communicator);
    const Inputs inputs = pseudorandom_inputs();
    const auto loss = [&] { return scale * transformer.forward_backward(inputs.bytes, inputs.targets, scale); };
    loss();
    const std::vector<double> gradients = read(*operations, parameters.gradients());
    const std::vector<double> values = read(*operations, parameters.values());

    constexpr std::size_t parts = 40;
    std::mt19937_64 random(11);
    for (std::size_t part = 0; part < parts; ++part) {
      const std::size_t begin = part * values.size() / parts, end = (part + 1) * values.size() / parts;
      std::vector<double> direction(values.size());
      double expected = 0;
      for (std::size_t i = begin; i < end; ++i) {
        direction[i] = static_cast<double>(random() >> 11) * 0x1p-52 - 1.0;
        expected += direction[i] * gradients[i];
      }
      const auto loss_at = [&](double distance) {
        std::vector<double> moved = values;
        for (std::size_t i = 0; i < values.size(); ++i) moved[i] += distance * direction[i];
        write(*operations, parameters.values(), moved);
        parameters.round();
        return loss();
      };
      constexpr double distance = 1e-5;
      const double found = (loss_at(distance) - loss_at(-distance)) / (2 * distance);
      EXPECT_NEAR(found, expected, 1e-6 * std::abs(expected) + 1e-8) << "parameters " << begin << " to " << end;
    }
  });
}

TEST(LanguageModelGradient, OfSparseAttention) {
  AttentionKind kind = AttentionKind::nsa(2, 1, 8);
  kind.options.dtype = DType::f64;
  check(kind);
}

TEST(LanguageModelGradient, OfFullAttention) {
  AttentionKind kind = AttentionKind::nsa(2, 1, 8).full(tokens);
  kind.options.dtype = DType::f64;
  check(kind);
}

}  // namespace
}  // namespace cpnsa::test
