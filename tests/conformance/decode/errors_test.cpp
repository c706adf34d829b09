// Bad input: a typed error before anything is enqueued, on every rank; in an unchecked decoder, no access out of
// bounds.

#include <gmock/gmock.h>

#include <optional>

#include "cpnsa/error.hpp"
#include "tests/conformance/decode/decode_test.hpp"
#include "tests/support/wrapped_communicator.hpp"

namespace cpnsa::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

CPNSA_DECODE_SUITE(DecodeErrors);

template <class Error>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("another error: ") + error.what();
  }
  return "no error";
}

/// A decoder of one layer with tensors for a step of three sequences with 4, 1 and 2 new tokens.
struct Fixture {
  static constexpr std::int64_t tokens = 7, slots = 4, max_length = 40;

  Fixture(Communicator& communicator, Device& own, DType type, bool checked, std::uint64_t seed = 1,
          bool compare_parameters = true)
      : device(own),
        dtype(type),
        problem(make_problem(small_config(), {0, tokens}, seed)),
        decoder(problem.config, options(checked, compare_parameters), own, communicator),
        counts(scaled(PageAllocator::pages_for(decoder.layout(), communicator.rank(), max_length))),
        pages(decoder.layout(), communicator.rank(), counts, slots, max_length),
        cache_memory(own, decoder.layout().bytes(counts)),
        workspace(own, decoder.workspace_bytes()),
        schedule(own, decoder.schedule_bytes()),
        out(own, static_cast<std::size_t>(tokens * 4 * 8) * size_of(type)),
        cache(decoder.layout().view(cache_memory.data(), counts)) {
    for (std::int64_t slot = 0; slot < slots; ++slot) pages.reserve(slot, lengths[static_cast<std::size_t>(slot)] + 4);
    for_each_tensor(
        [&](auto, const Values& values, const Shape& shape, DeviceBuffer& buffer, TensorView& view) {
          if (values.empty()) return;
          buffer = DeviceBuffer(own, dtype, values);
          view = shape.size() == 2 ? TensorView(buffer.data(), dtype, {shape[0], shape[1]})
                                   : TensorView(buffer.data(), dtype, {shape[0], shape[1], shape[2]});
        },
        problem.inputs, shapes_of(problem.config, tokens), tensors, inputs);
    inputs.k.slc = inputs.k.win = inputs.k.cmp;
    inputs.v.slc = inputs.v.win = inputs.v.cmp;
    outputs.out = TensorView(out.data(), dtype, {tokens, 4, 8});
    slc_table = pages.table(CachePart::slc);
    summaries_table = pages.table(CachePart::summaries);
    slc_pages = counts.slc;
  }

  DecoderOptions options(bool checked, bool compare_parameters = true) const {
    DecoderOptions options;
    options.cache.dtype = dtype;
    options.max_sequences = 3, options.max_tokens = tokens, options.max_length = max_length;
    options.checked = checked;
    options.compare_parameters = compare_parameters;
    return options;
  }
  static PageCounts scaled(PageCounts counts) { return {0, counts.slc * slots, 0, counts.summaries * slots}; }

  /// Uploads the arrays as they are now.
  DecodeBatch batch() {
    buffers.clear();
    const auto upload = [&](const std::vector<std::int32_t>& numbers) {
      buffers.emplace_back(device, numbers);
      return static_cast<const std::int32_t*>(buffers.back().data());
    };
    DecodeBatch batch;
    batch.sequences = 3, batch.tokens = tokens, batch.num_slots = slots;
    batch.slots = upload(slot_of);
    batch.lengths = upload(lengths);
    batch.cu_q = upload(cu_q);
    batch.slc = {upload(slc_table), pages.columns(CachePart::slc), slc_pages};
    batch.summaries = {upload(summaries_table), pages.columns(CachePart::summaries), counts.summaries};
    return batch;
  }
  void prepare() { decoder.prepare(batch(), schedule.data(), {}); }
  void step() {
    decoder.step(inputs, cache, outputs, workspace.data(), {});
    device.synchronize({});
  }

  Device& device;
  DType dtype;
  std::vector<std::int32_t> slot_of{2, 0, 3}, lengths{20, 0, 9, 31}, cu_q{0, 4, 5, 7};
  Problem problem;
  Decoder decoder;
  PageCounts counts;
  PageAllocator pages;
  DeviceBuffer cache_memory, workspace, schedule, out;
  KvCache cache;
  TensorSet<DeviceBuffer> tensors;
  AttentionInputs inputs;
  DecodeOutputs outputs;
  std::vector<std::int32_t> slc_table, summaries_table;
  std::int64_t slc_pages = 0;
  std::vector<DeviceBuffer> buffers;
};

TEST_P(DecodeErrors, AMistakeInTheBatchNamesTheSequenceAndThePage) {
  for (const int ranks : rank_counts())
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Fixture fixture(communicator, own, widest_dtype(), true);
      EXPECT_EQ(message_of<ArgumentError>([&] { fixture.prepare(), fixture.step(); }), "no error");
      const auto expect_error = [&](const auto& change, const std::string& text) {
        const auto slot_of = fixture.slot_of, lengths = fixture.lengths, cu_q = fixture.cu_q,
                   slc_table = fixture.slc_table, summaries_table = fixture.summaries_table;
        change();
        EXPECT_THAT(message_of<ArgumentError>([&] { fixture.prepare(); }), HasSubstr(text)) << ranks << " ranks";
        fixture.slot_of = slot_of, fixture.lengths = lengths, fixture.cu_q = cu_q;
        fixture.slc_table = slc_table, fixture.summaries_table = summaries_table;
      };
      expect_error([&] { fixture.slot_of[1] = 4; }, "batch.slots: found 4 for sequence 1, expected 0 to 3");
      expect_error([&] { fixture.slot_of[1] = -1; }, "batch.slots: found -1 for sequence 1");
      expect_error([&] { fixture.slot_of[1] = 2; }, "found slot 2 for sequences 0 and 1");
      expect_error([&] { fixture.lengths[0] = -3; }, "batch.lengths: found -3 for sequence 1");
      expect_error([&] { fixture.lengths[3] = 39; },
                   "found 41 tokens after the step for sequence 2 (slot 3), expected at most 40, max_length");
      expect_error([&] { fixture.cu_q[1] = 6; }, "batch.cu_q: found rows 6 to 5 for sequence 1");
      expect_error([&] { fixture.cu_q[3] = 8; }, "batch.cu_q: found rows 5 to 8 for sequence 2");
      if (communicator.size() > 1) return;  // which rank holds a page differs
      expect_error(
          [&] { fixture.slc_table[static_cast<std::size_t>(2 * fixture.pages.columns(CachePart::slc)) + 1] = -1; },
          "batch.slc: found page -1 in column 1 of sequence 0 (slot 2");
      expect_error([&] { fixture.slc_table[0] = static_cast<std::int32_t>(fixture.slc_pages); },
                   "in column 0 of sequence 1 (slot 0");
      expect_error([&] { fixture.summaries_table[0] = 1 << 30; }, "batch.summaries: found page 1073741824");
      expect_error(
          [&] {
            const auto columns = static_cast<std::size_t>(fixture.pages.columns(CachePart::slc));
            fixture.slc_table[2 * columns + 1] = fixture.slc_table[0];
          },
          "expected pages of their own");
      EXPECT_EQ(message_of<ArgumentError>([&] { fixture.prepare(), fixture.step(); }), "no error");
    });
}

TEST_P(DecodeErrors, ATableThatIsTooShortIsNamed) {
  on_ranks(rank_counts().front(), [&](Communicator& communicator, Device& own) {
    if (communicator.size() > 1) return;
    Fixture fixture(communicator, own, widest_dtype(), true);
    DecodeBatch batch = fixture.batch();
    batch.slc.columns = 1;
    EXPECT_THAT(
        message_of<ArgumentError>([&] { fixture.decoder.prepare(batch, fixture.schedule.data(), {}); }),
        HasSubstr("batch.slc: found a table of 1 columns, expected at least 2 for the 13 tokens of sequence 0"));
  });
}

TEST_P(DecodeErrors, AStepThatDoesNotFitIsRefusedBeforeItIsEnqueued) {
  on_ranks(rank_counts().front(), [&](Communicator& communicator, Device& own) {
    if (communicator.size() > 1) return;
    for (const bool checked : {false, true}) {
      Fixture fixture(communicator, own, widest_dtype(), checked);
      const auto error = [&](const std::function<void()>& call) { return message_of<ArgumentError>(call); };
      EXPECT_THAT(error([&] { fixture.step(); }), HasSubstr("expected prepare() before it"));
      DecodeBatch batch = fixture.batch();
      batch.sequences = 4;
      EXPECT_THAT(error([&] { fixture.decoder.prepare(batch, fixture.schedule.data(), {}); }),
                  HasSubstr("batch.sequences: found 4, expected 0 to 3"));
      batch = fixture.batch();
      batch.tokens = 8;
      EXPECT_THAT(error([&] { fixture.decoder.prepare(batch, fixture.schedule.data(), {}); }),
                  HasSubstr("batch.tokens: found 8, expected 0 to 7"));
      EXPECT_THAT(error([&] { fixture.decoder.prepare(fixture.batch(), nullptr, {}); }), HasSubstr("schedule"));
      fixture.prepare();
      KvCache of_another = fixture.cache;
      of_another.k.slc.shape[3] = 12;
      EXPECT_THAT(error([&] {
                    fixture.decoder.step(fixture.inputs, of_another, fixture.outputs, fixture.workspace.data(), {});
                  }),
                  AllOf(HasSubstr("cache.k.slc: found"), HasSubstr("expected")));
      AttentionInputs inputs = fixture.inputs;
      inputs.gate.shape[0] = 6;
      EXPECT_THAT(
          error([&] { fixture.decoder.step(inputs, fixture.cache, fixture.outputs, fixture.workspace.data(), {}); }),
          HasSubstr("gate: found"));
      inputs = fixture.inputs;
      inputs.k.win.data = inputs.q.data;
      EXPECT_THAT(
          error([&] { fixture.decoder.step(inputs, fixture.cache, fixture.outputs, fixture.workspace.data(), {}); }),
          HasSubstr("shared_branches"));
      EXPECT_EQ(error([&] { fixture.step(); }), "no error");
    }
  });
}

TEST_P(DecodeErrors, ALayoutThatBreaksTheRulesIsRefused) {
  const Config config = small_config();
  EXPECT_THAT(message_of<ArgumentError>([&] { KvCacheLayout(config, {.page = 12}); }),
              HasSubstr("page: found 12 tokens, expected a multiple of select_block 8"));
  EXPECT_THAT(message_of<ArgumentError>([&] { KvCacheLayout(config, {}, 0); }), HasSubstr("ranks: found 0"));
  EXPECT_THAT(message_of<ConfigError>([&] { KvCacheLayout(Config(), {}); }), HasSubstr("num_q_heads"));
  on_ranks(rank_counts().front(), [&](Communicator& communicator, Device& own) {
    EXPECT_THAT(message_of<ArgumentError>([&] { Decoder(config, {}, own, communicator); }),
                HasSubstr("max_length: found 0, expected 1 to"));
  });
}

TEST_P(DecodeErrors, RanksWithDifferentBatchesAreTold) {
  for (const int ranks : rank_counts(2)) {
    if (!transport().tells_other_ranks) continue;
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Fixture fixture(communicator, own, widest_dtype(), true);
      if (communicator.rank() == 1) fixture.lengths[0] = 19;
      EXPECT_THAT(message_of<MismatchError>([&] { fixture.prepare(); }), HasSubstr("sequence1=")) << ranks << " ranks";
      DecoderOptions options = fixture.options(true);
      if (communicator.rank() == 1) options.cache.page = 16;
      EXPECT_THAT(message_of<MismatchError>([&] { Decoder(small_config(), options, own, communicator); }),
                  HasSubstr("page=16"));
    });
  }
}

TEST_P(DecodeErrors, RanksMustHoldTheSameParameters) {
  for (const int ranks : rank_counts(2))
    for (const bool checked : {false, true})
      for (const bool compares : {true, false})
        on_ranks(ranks, [&](Communicator& communicator, Device& own) {
          Fixture fixture(communicator, own, widest_dtype(), checked, communicator.rank() == 1 ? 2 : 1, compares);
          fixture.prepare();
          const std::int64_t before = fixture.decoder.statistics().bytes_received.back();
          if (compares) {
            for (int i = 0; i < 2; ++i)  // until they are the same
              EXPECT_THAT(message_of<MismatchError>([&] { fixture.step(); }),
                          HasSubstr("rank 1: found \"compress_k_pos="));
            EXPECT_EQ(fixture.decoder.statistics().messages, 0);
          } else {
            EXPECT_EQ(message_of<ArgumentError>([&] { fixture.step(); }), "no error");
            EXPECT_EQ(fixture.decoder.statistics().messages, 3);
            const std::int64_t agreements = checked ? 1 : 0;
            EXPECT_EQ(fixture.decoder.statistics().bytes_received.back() - before,
                      agreements * (ranks - 1) * static_cast<std::int64_t>(agreement_bytes));
          }
        });
}

// Each layer's parameters are compared once, so that later steps only enqueue.
TEST_P(DecodeErrors, ParametersAreComparedInTheFirstStepOfALayer) {
  for (const int ranks : rank_counts())
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Fixture fixture(communicator, own, widest_dtype(), false);
      const auto agreements = [&] {
        fixture.prepare(), fixture.step();
        return fixture.decoder.statistics().bytes_received.back();
      };
      const std::int64_t one = 2 * (ranks - 1) * static_cast<std::int64_t>(agreement_bytes);
      EXPECT_EQ(agreements(), one) << ranks << " ranks";
      EXPECT_EQ(agreements(), one) << ranks << " ranks";
      fixture.inputs.layer = 1;
      EXPECT_EQ(agreements(), 2 * one) << ranks << " ranks";
    });
}

// The decoder names each variant of a layer that it does not compute.
TEST_P(DecodeErrors, VariantsOfALayerAreRefusedByName) {
  on_ranks(rank_counts().front(), [&](Communicator& communicator, Device& own) {
    if (communicator.size() > 1) return;
    Fixture fixture(communicator, own, widest_dtype(), false);
    fixture.prepare();
    const auto expect_refused = [&](const auto& change, const std::string& name) {
      AttentionInputs inputs = fixture.inputs;
      change(inputs);
      EXPECT_THAT(message_of<ArgumentError>([&] {
                    fixture.decoder.step(inputs, fixture.cache, fixture.outputs, fixture.workspace.data(), {});
                  }),
                  AllOf(HasSubstr(name + ": found"), HasSubstr("expected no")));
    };
    const std::int32_t indices[1] = {};
    expect_refused([](AttentionInputs& in) { in.q_cmp = in.q; }, "q_cmp");
    expect_refused([](AttentionInputs& in) { in.sink_slc = in.gate; }, "sink_slc");
    expect_refused([](AttentionInputs& in) { in.sink_win = in.gate; }, "sink_win");
    expect_refused([](AttentionInputs& in) { in.summary_rotation.cos = in.gate; }, "summary_rotation");
    expect_refused([&](AttentionInputs& in) { in.selected = indices; }, "inputs.selected");
    EXPECT_EQ(message_of<ArgumentError>([&] { fixture.step(); }), "no error");
    Config config = small_config();
    config.branches = BranchSet::cmp_win;
    EXPECT_THAT(message_of<UnsupportedError>([&] { Decoder(config, fixture.options(false), own, communicator); }),
                HasSubstr("branches: found cmp_win, expected all"));
  });
}

// One decoder serves all layers of a model, which the caller numbers.
TEST_P(DecodeErrors, RanksThatStepThroughLayersInAnotherOrderAreTold) {
  for (const int ranks : rank_counts(2)) {
    if (!transport().tells_other_ranks) continue;
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Fixture fixture(communicator, own, widest_dtype(), true);
      fixture.prepare();
      for (int repetition = 0; repetition < 2; ++repetition) {  // the second without a comparison of parameters
        fixture.inputs.layer = communicator.rank() == 1 ? 1 : 0;
        EXPECT_THAT(message_of<MismatchError>([&] { fixture.step(); }),
                    HasSubstr("rank 1: found \"callers_layer=1\", expected \"callers_layer=0\""))
            << ranks << " ranks";
        for (const int layer : {0, 1}) {
          fixture.inputs.layer = layer;
          EXPECT_EQ(message_of<MismatchError>([&] { fixture.step(); }), "no error");
        }
      }
    });
  }
}

// In an unchecked decoder: what is wrong is left out, and the sequences that are right have their results.
TEST_P(DecodeErrors, AnUncheckedDecoderLeavesOutWhatIsWrong) {
  on_ranks(rank_counts().front(), [&](Communicator& communicator, Device& own) {
    if (communicator.size() > 1) return;
    std::optional<Values> expected;
    Fixture right(communicator, own, widest_dtype(), false);
    right.cache_memory.fill(0);
    right.prepare(), right.step();
    expected = right.out.values(right.dtype);
    const auto change = [&](const auto& mistake, std::int64_t first_row, std::int64_t last_row) {
      Fixture fixture(communicator, own, widest_dtype(), false);
      fixture.cache_memory.fill(0);
      mistake(fixture);
      fixture.prepare(), fixture.step();
      const Values found = fixture.out.values(fixture.dtype);
      for (std::int64_t row = 0; row < Fixture::tokens; ++row) {
        if (row >= first_row && row < last_row) continue;
        for (std::int64_t c = row * 32; c < (row + 1) * 32; ++c)
          EXPECT_EQ(found[static_cast<std::size_t>(c)], (*expected)[static_cast<std::size_t>(c)]) << "row " << row;
      }
    };
    change([](Fixture& fixture) { fixture.slot_of[0] = 1000000; }, 0, 4);
    change([](Fixture& fixture) { fixture.lengths[2] = 1 << 30; }, 0, 4);
    change([](Fixture& fixture) { fixture.lengths[0] = -7; }, 4, 5);
    change([](Fixture& fixture) { fixture.cu_q[3] = 1 << 30; }, 5, 7);
    const auto corrupt = [](Fixture& fixture, std::int64_t slot, std::int32_t id) {
      const std::int64_t columns = fixture.pages.columns(CachePart::slc);
      for (std::int64_t column = 0; column < columns; ++column)
        fixture.slc_table[static_cast<std::size_t>(slot * columns + column)] = id;
      const std::int64_t summary_columns = fixture.pages.columns(CachePart::summaries);
      for (std::int64_t column = 0; column < summary_columns; ++column)
        fixture.summaries_table[static_cast<std::size_t>(slot * summary_columns + column)] = id;
    };
    change([&](Fixture& fixture) { corrupt(fixture, 2, 1 << 30); }, 0, 4);
    change([&](Fixture& fixture) { corrupt(fixture, 3, -5); }, 5, 7);
  });
}

class FailingGather final : public WrappedCommunicator {
 public:
  using WrappedCommunicator::WrappedCommunicator;
  bool fails = false;

  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override {
    if (fails) throw CommunicationError("the cable was pulled");
    WrappedCommunicator::all_gather(own, all, bytes, device, stream);
  }
};

TEST_P(DecodeErrors, ADecoderWhoseStepFailedRefusesEveryCall) {
  for (const int ranks : rank_counts(2)) {
    if (!transport().tells_other_ranks) continue;
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      FailingGather wrapped(communicator);
      Fixture fixture(wrapped, own, widest_dtype(), false);
      fixture.prepare();
      wrapped.fails = communicator.rank() == 0;
      bool stepped = false;
      EXPECT_THAT(message_of<CommunicationError>([&] {
                    communicator.barrier();  // which the failure may end on a rank that is late
                    stepped = true;
                    fixture.step();
                  }),
                  HasSubstr("the cable was pulled"));
      EXPECT_TRUE(stepped || communicator.rank() != 0);
      if (stepped) {
        EXPECT_THAT(message_of<ArgumentError>([&] { fixture.step(); }), HasSubstr("expected a new decoder"));
      }
    });
    return;  // the communicator has failed
  }
}

}  // namespace
}  // namespace cpnsa::test
