#include "src/decoder.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <mutex>
#include <tuple>
#include <utility>

#include "src/arguments.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

constexpr std::size_t part_count = enum_names<CachePart>.size();
constexpr std::array<const char*, 8> cache_names{"cache.k.cmp",       "cache.k.slc",      "cache.k.win",
                                                 "cache.v.cmp",       "cache.v.slc",      "cache.v.win",
                                                 "cache.summaries_k", "cache.summaries_v"};

const std::int32_t* numbers_of(nb::handle object, const char* name, const Device& device, std::int64_t count,
                               Owners& owners) {
  if (object.is_none()) return nullptr;
  return static_cast<const std::int32_t*>(indices_of(object, name, device, static_cast<std::size_t>(count), owners));
}

void expect_items(const char* name, nb::sequence sequence, std::size_t expected) {
  if (const std::size_t found = nb::len(sequence); found != expected)
    throw ArgumentError(fmt::format("{}: found {} items, expected {}", name, found, expected));
}

std::array<PageTable, part_count> tables_of(nb::sequence tables, nb::sequence pool_pages, std::int64_t num_slots,
                                            const Device& device, Owners& owners) {
  expect_items("tables", tables, part_count);
  expect_items("pool_pages", pool_pages, part_count);
  std::array<PageTable, part_count> result;
  for (std::size_t part = 0; part < part_count; ++part) {
    const nb::object table = tables[part];
    if (table.is_none()) continue;
    const auto shape = nb::cast<nb::tuple>(table.attr("shape"));
    if (nb::len(shape) != 2)
      throw ArgumentError(fmt::format("tables: found {} dimensions, expected 2: slots and columns", nb::len(shape)));
    result[part].columns = nb::cast<std::int64_t>(shape[1]);
    result[part].pool_pages = nb::cast<std::int64_t>(pool_pages[part]);
    result[part].pages = numbers_of(table, "tables", device, num_slots * result[part].columns, owners);
  }
  return result;
}

KvCache cache_of(nb::sequence tensors, const Device& device, Owners& owners) {
  expect_items("cache", tensors, cache_names.size());
  KvCache cache;
  const std::array<TensorView*, cache_names.size()> members{&cache.k.cmp,       &cache.k.slc,      &cache.k.win,
                                                            &cache.v.cmp,       &cache.v.slc,      &cache.v.win,
                                                            &cache.summaries_k, &cache.summaries_v};
  for (std::size_t i = 0; i < members.size(); ++i)
    *members[i] = view_of(tensors[i], cache_names[i], device, true, owners);
  return cache;
}

}  // namespace

SharedDecoder::SharedDecoder(const Config& config, std::shared_ptr<Device> device,
                             const SharedCommunicator& communicator, const DecoderOptions& options)
    : config_(config), device_(std::move(device)), communicator_(communicator), layout_(config, {}) {
  Communicator& transport = communicator_.get();
  communicator_.run([&] { decoder_ = std::make_unique<Decoder>(config, options, *device_, transport); });
  layout_ = decoder_->layout();
  rank_ = transport.rank();
  messages_ = decoder_->messages_per_step();
  workspace_bytes_ = decoder_->workspace_bytes();
  schedule_bytes_ = decoder_->schedule_bytes();
}

SharedDecoder::~SharedDecoder() {
  const nb::gil_scoped_release released;
  decoder_.reset();
}

Decoder& SharedDecoder::open() const {
  if (!decoder_) throw ArgumentError("decoder: found one that was closed, expected an open one");
  communicator_.get();
  return *decoder_;
}

/// Makes a collective call, or tells the other ranks that this rank cannot, and throws.
template <class Call>
void SharedDecoder::run(const std::string& problem, const Call& call) {
  communicator_.run([&] {
    const std::lock_guard lock(lock_);
    if (!problem.empty()) {
      open().refuse(problem);
      throw ArgumentError(problem);
    }
    call(open());
  });
}

void SharedDecoder::prepare(std::int64_t sequences, std::int64_t tokens, std::int64_t num_slots, nb::handle slots,
                            nb::handle lengths, nb::handle cu_q, nb::sequence tables, nb::sequence pool_pages,
                            nb::handle schedule, std::uintptr_t stream) {
  open();
  Owners owners;
  DecodeBatch batch;
  void* memory = nullptr;
  const std::string problem = problem_of([&] {
    if (sequences < 0 || tokens < 0 || num_slots < 0)
      throw ArgumentError(fmt::format("batch: found {} sequences, {} tokens and {} slots, expected 0 or more",
                                      sequences, tokens, num_slots));
    batch.sequences = sequences, batch.tokens = tokens, batch.num_slots = num_slots;
    batch.slots = numbers_of(slots, "slots", *device_, sequences, owners);
    batch.lengths = numbers_of(lengths, "lengths", *device_, num_slots, owners);
    batch.cu_q = numbers_of(cu_q, "cu_q", *device_, sequences + 1, owners);
    const auto parts = tables_of(tables, pool_pages, num_slots, *device_, owners);
    batch.cmp = parts[0], batch.slc = parts[1], batch.win = parts[2], batch.summaries = parts[3];
    memory = memory_of(schedule, "schedule", *device_, schedule_bytes_, owners);
  });
  run(problem, [&](Decoder& decoder) { decoder.prepare(batch, memory, {reinterpret_cast<void*>(stream)}); });
  tokens_ = tokens;
  prepared_ = std::move(owners);
}

void SharedDecoder::step(nb::sequence inputs, nb::sequence cache, nb::handle out, nb::handle selected,
                         nb::handle log_sum_exp, nb::handle workspace, std::uintptr_t stream, nb::handle indices,
                         std::int64_t layer) {
  open();
  Owners owners;
  AttentionInputs in;
  KvCache pools;
  DecodeOutputs outputs;
  void* work = nullptr;
  const std::string problem = problem_of([&] {
    in = views_of<AttentionInputs>(inputs, indices, false, *device_, owners);
    in.layer = layer;
    pools = cache_of(cache, *device_, owners);
    outputs.out = view_of(out, "out", *device_, true, owners);
    if (!selected.is_none()) {
      const auto count = static_cast<std::size_t>(tokens_ * config_.num_kv_heads * config_.select_count);
      outputs.selected = static_cast<std::int32_t*>(indices_of(selected, "selected", *device_, count, owners));
    }
    if (!log_sum_exp.is_none()) {
      const auto bytes = static_cast<std::size_t>(3 * tokens_ * config_.num_q_heads) *
                         size_of(accumulate_dtype(layout_.options().dtype));
      outputs.log_sum_exp = memory_of(log_sum_exp, "log_sum_exp", *device_, bytes, owners);
    }
    work = memory_of(workspace, "workspace", *device_, workspace_bytes_, owners);
  });
  run(problem, [&](Decoder& decoder) { decoder.step(in, pools, outputs, work, {reinterpret_cast<void*>(stream)}); });
}

void SharedDecoder::refuse(const std::string& problem) {
  communicator_.run([&] {
    const std::lock_guard lock(lock_);
    open().refuse(problem);
  });
}

DecodeStatistics SharedDecoder::statistics() {
  const std::lock_guard lock(lock_);
  return open().statistics();
}

void SharedDecoder::close() {
  communicator_.run([&] {
    const std::lock_guard lock(lock_);
    decoder_.reset();
  });
}

void bind_decoder(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<SharedDecoder>(module, "Decoder",
                            "Prefill and decoding over paged KV caches: prepare() once a step, then step() once a "
                            "layer. Making it is collective, and so are its calls.")
      .def(
          "__init__",
          [](SharedDecoder* self, const Config& config, std::shared_ptr<Device> device,
             const SharedCommunicator& communicator, std::string_view dtype, std::int64_t page,
             std::int64_t summary_page, bool shared_branches, bool replicate_summaries, std::int64_t max_sequences,
             std::int64_t max_tokens, std::int64_t max_length, bool checked, bool compare_parameters) {
            DecoderOptions options;
            if (const std::string problem = problem_of([&] { options.cache.dtype = named<DType>("dtype", dtype); });
                !problem.empty()) {
              communicator.refuse(problem);
              throw ArgumentError(problem);
            }
            options.cache.page = page;
            options.cache.summary_page = summary_page;
            options.cache.shared_branches = shared_branches;
            options.cache.replicate_summaries = replicate_summaries;
            options.max_sequences = max_sequences;
            options.max_tokens = max_tokens;
            options.max_length = max_length;
            options.checked = checked;
            options.compare_parameters = compare_parameters;
            new (self) SharedDecoder(config, std::move(device), communicator, options);
          },
          "config"_a, "device"_a, "communicator"_a, nb::kw_only(), "dtype"_a, "page"_a = 0, "summary_page"_a = 0,
          "shared_branches"_a = true, "replicate_summaries"_a = false, "max_sequences"_a = 1, "max_tokens"_a = 1,
          "max_length"_a, "checked"_a = false, "compare_parameters"_a = true)
      .def("prepare", &SharedDecoder::prepare, "sequences"_a, "tokens"_a, "num_slots"_a, "slots"_a.none(), "lengths"_a,
           "cu_q"_a, "tables"_a, "pool_pages"_a, "schedule"_a, "stream"_a)
      .def("step", &SharedDecoder::step, "inputs"_a, "cache"_a, "out"_a, "selected"_a.none(), "log_sum_exp"_a.none(),
           "workspace"_a, "stream"_a, "indices"_a = nb::none(), "layer"_a = 0)
      .def("refuse", &SharedDecoder::refuse, "problem"_a,
           "Takes the place of this rank's next call, which it cannot make: the others' raises an error with the "
           "problem.")
      .def("statistics",
           [](SharedDecoder& self) {
             const DecodeStatistics statistics = self.statistics();
             nb::dict received, all;
             for (const DecodeTraffic traffic : enum_values<DecodeTraffic>)
               received[std::string(name_of(traffic)).c_str()] =
                   statistics.bytes_received[static_cast<std::size_t>(traffic)];
             all["steps"] = statistics.steps;
             all["messages"] = statistics.messages;
             all["bytes_received"] = received;
             return all;
           })
      .def("close", &SharedDecoder::close)
      .def(
          "pool_shapes",
          [](const SharedDecoder& self, std::string_view name, std::int64_t pages) {
            const auto part = named<CachePart>("part", name);
            const KvCacheLayout& layout = self.layout();
            const Config& config = layout.config();
            return std::tuple(std::tuple(pages, layout.key_rows(part), config.num_kv_heads, config.head_dim_qk),
                              std::tuple(pages, layout.value_rows(part), config.num_kv_heads, config.head_dim_v));
          },
          "part"_a, "pages"_a, "The shapes of a part's pools of keys and of values.")
      .def(
          "pages_with",
          [](const SharedDecoder& self, std::string_view name) {
            return std::string(name_of(self.layout().pages_with(named<CachePart>("part", name))));
          },
          "part"_a, "The part whose pages and page table hold this part too; itself if it has its own.")
      .def(
          "pages_for",
          [](const SharedDecoder& self, std::string_view name, std::int64_t length) {
            return self.layout().pages_of(named<CachePart>("part", name), length, self.rank());
          },
          "part"_a, "length"_a, "The pages that a sequence of this length has on this rank.")
      .def_prop_ro("page", [](const SharedDecoder& self) { return self.layout().page(); })
      .def_prop_ro("summary_page", [](const SharedDecoder& self) { return self.layout().summary_page(); })
      .def_prop_ro("messages_per_step", &SharedDecoder::messages_per_step)
      .def_prop_ro("workspace_bytes", &SharedDecoder::workspace_bytes)
      .def_prop_ro("schedule_bytes", &SharedDecoder::schedule_bytes);
}

}  // namespace cpnsa::python
