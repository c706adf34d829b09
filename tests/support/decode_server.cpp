#include "tests/support/decode_server.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace cpnsa::test {
namespace {

std::int64_t documents_of(const Problem& problem) {
  return static_cast<std::int64_t>(problem.cu_seqlens.size()) - 1;
}

std::int64_t length_of(const Problem& problem, std::int64_t document) {
  return problem.cu_seqlens[static_cast<std::size_t>(document) + 1] -
         problem.cu_seqlens[static_cast<std::size_t>(document)];
}

TensorView view_of(const DeviceBuffer& buffer, DType dtype, const Shape& shape) {
  if (shape.size() == 2) return {buffer.data(), dtype, {shape[0], shape[1]}};
  if (shape.size() == 3) return {buffer.data(), dtype, {shape[0], shape[1], shape[2]}};
  throw std::logic_error("a layer's tensors have 2 or 3 dimensions");
}

template <class T>
void shuffle(std::vector<T>& items, Random& random) {
  for (std::size_t i = items.size(); i > 1; --i)
    std::swap(items[i - 1], items[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(i) - 1))]);
}

DecoderOptions options_of(const Problem& problem, const ServerSetting& setting, const std::vector<ServerStep>& steps) {
  DecoderOptions options;
  options.cache = {.dtype = setting.dtype,
                   .page = setting.page,
                   .summary_page = setting.summary_page,
                   .shared_branches = problem.shared_k && problem.shared_v,
                   .replicate_summaries = setting.replicate_summaries};
  options.checked = setting.checked;
  for (const ServerStep& step : steps) {
    std::int64_t tokens = 0;
    for (const Piece& piece : step.pieces) tokens += piece.count;
    options.max_tokens = std::max(options.max_tokens, tokens);
    options.max_sequences = std::max(options.max_sequences, static_cast<std::int64_t>(step.pieces.size()));
  }
  for (std::int64_t d = 0; d < documents_of(problem); ++d)
    options.max_length = std::max(options.max_length, length_of(problem, d));
  return options;
}

PageCounts pool_pages(const Problem& problem, const KvCacheLayout& layout, int rank) {
  PageCounts pages;
  for (std::int64_t d = 0; d < documents_of(problem); ++d) {
    const PageCounts of = PageAllocator::pages_for(layout, rank, length_of(problem, d));
    pages.cmp += of.cmp, pages.slc += of.slc, pages.win += of.win, pages.summaries += of.summaries;
  }
  return pages;
}

}  // namespace

std::vector<ServerStep> steps_of(const Problem& problem, std::int64_t count) {
  std::vector<ServerStep> steps;
  for (std::int64_t begin = 0;; begin += count) {
    ServerStep step;
    for (std::int64_t d = 0; d < documents_of(problem); ++d)
      if (const std::int64_t left = length_of(problem, d) - begin; left > 0)
        step.pieces.push_back({d, begin, std::min(count, left)});
    if (step.pieces.empty()) return steps;
    steps.push_back(step);
  }
}

std::vector<ServerStep> random_steps(const Problem& problem, Random& random, std::int64_t max_chunk) {
  std::vector<ServerStep> steps;
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(documents_of(problem)));
  for (;;) {
    ServerStep step;
    bool all_ended = true;
    for (std::int64_t d = 0; d < documents_of(problem); ++d) {
      std::int64_t& length = lengths[static_cast<std::size_t>(d)];
      const std::int64_t end = length_of(problem, d);
      if (length == end) continue;
      all_ended = false;
      if (random.chance(0.3)) continue;
      std::int64_t begin = length;
      if (begin > 0 && random.chance(0.1)) begin = std::max<std::int64_t>(0, begin - random.integer(1, max_chunk));
      const std::int64_t most = random.pick(std::array<std::int64_t, 4>{1, 1, 5, max_chunk});
      const std::int64_t count = std::min(end - begin, random.integer(1, most));
      step.pieces.push_back({d, begin, count});
      length = begin + count;
    }
    if (all_ended) return steps;
    if (!step.pieces.empty()) steps.push_back(step);
  }
}

DecodeServer::DecodeServer(const Problem& problem, const ServerSetting& setting, Device& device,
                           Communicator& communicator, const std::vector<ServerStep>& steps)
    : problem_(problem),
      setting_(setting),
      device_(device),
      steps_(steps),
      random_(setting.seed),
      decoder_(problem.config, options_of(problem, setting, steps), device, communicator),
      pages_(decoder_.layout(), communicator.rank(), pool_pages(problem, decoder_.layout(), communicator.rank()),
             documents_of(problem) + 2, options_of(problem, setting, steps).max_length, setting.seed),
      counts_(pool_pages(problem, decoder_.layout(), communicator.rank())),
      cache_memory_(device, decoder_.layout().bytes(counts_)),
      workspace_(device, decoder_.workspace_bytes()),
      schedule_(device, decoder_.schedule_bytes()),
      cache_(decoder_.layout().view(cache_memory_.data(), counts_)),
      slots_(static_cast<std::size_t>(documents_of(problem)) + 2),
      lengths_(static_cast<std::size_t>(documents_of(problem))) {
  std::iota(slots_.begin(), slots_.end(), 0);
  shuffle(slots_, random_);
  for_each_parameter(
      [&](auto, const Values& values, DeviceBuffer& buffer) {
        if (!values.empty()) buffer = DeviceBuffer(device, setting.dtype, values);
      },
      problem.inputs, parameters_);
  const Config& config = problem.config;
  const auto rows = static_cast<std::size_t>(problem.tokens());
  result_.out.resize(rows * static_cast<std::size_t>(config.num_q_heads * config.head_dim_v));
  result_.selected.resize(rows * static_cast<std::size_t>(config.num_kv_heads * config.select_count));
  result_.log_sum_exp.resize(rows * static_cast<std::size_t>(3 * config.num_q_heads));
  stored_.resize(rows);
}

ServerResult DecodeServer::run() {
  for (const ServerStep& step : steps_) {
    start(step);
    this->step(step);
  }
  result_.statistics = decoder_.statistics();
  return result_;
}

void DecodeServer::start(const ServerStep& step) {
  const auto slot_of = [&](std::int64_t document) { return slots_[static_cast<std::size_t>(document)]; };
  for (const Fork& fork : step.forks) {
    const auto copies = pages_.fork(slot_of(fork.from), slot_of(fork.to), fork.tokens);
    copy_pages(decoder_.layout(), cache_, copies, device_, {});
    lengths_[static_cast<std::size_t>(fork.to)] = fork.tokens;
  }
  for (const Piece& piece : step.pieces) {
    std::int64_t& length = lengths_[static_cast<std::size_t>(piece.document)];
    if (length > piece.begin) {
      const auto copies = pages_.cut(slot_of(piece.document), piece.begin);
      copy_pages(decoder_.layout(), cache_, copies, device_, {});
    } else if (length < piece.begin) {
      throw std::logic_error("a piece begins after the end of its sequence");
    }
    length = piece.begin;
    pages_.reserve(slot_of(piece.document), piece.begin + piece.count);
    if (setting_.drops_pages) pages_.drop_before(slot_of(piece.document), piece.begin);
  }
}

DeviceBuffer DecodeServer::table(CachePart part) {
  return {device_, pages_.table(part)};
}

void DecodeServer::step(const ServerStep& step) {
  const Config& config = problem_.config;
  std::vector<Piece> pieces = step.pieces;
  shuffle(pieces, random_);
  std::vector<std::int32_t> slots, lengths(static_cast<std::size_t>(pages_.slots())), cu_q{0};
  for (std::size_t d = 0; d < lengths_.size(); ++d)
    lengths[static_cast<std::size_t>(slots_[d])] = static_cast<std::int32_t>(lengths_[d]);
  std::vector<std::int64_t> tokens;
  for (const Piece& piece : pieces) {
    slots.push_back(static_cast<std::int32_t>(slots_[static_cast<std::size_t>(piece.document)]));
    cu_q.push_back(cu_q.back() + static_cast<std::int32_t>(piece.count));
    const std::int64_t first = problem_.cu_seqlens[static_cast<std::size_t>(piece.document)] + piece.begin;
    for (std::int64_t t = first; t < first + piece.count; ++t) tokens.push_back(t);
  }
  const auto count = static_cast<std::int64_t>(tokens.size());

  TensorSet<DeviceBuffer> rows;
  AttentionInputs inputs;
  const TensorSet<Shape> shapes = shapes_of(config, count);
  for_each_token_tensor(
      [&](auto, const Values& values, const Shape& shape, DeviceBuffer& buffer, TensorView& view) {
        if (values.empty()) return;
        const std::size_t width = values.size() / static_cast<std::size_t>(problem_.tokens());
        Values own;
        for (const std::int64_t t : tokens) {
          const auto begin = values.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(t) * width);
          own.insert(own.end(), begin, begin + static_cast<std::ptrdiff_t>(width));
        }
        buffer = DeviceBuffer(device_, setting_.dtype, own);
        view = view_of(buffer, setting_.dtype, shape);
      },
      problem_.inputs, shapes, rows, inputs);
  for_each_parameter(
      [&](auto, const Values& values, const Shape& shape, const DeviceBuffer& buffer, TensorView& view) {
        if (!values.empty()) view = view_of(buffer, setting_.dtype, shape);
      },
      problem_.inputs, shapes, parameters_, inputs);
  if (problem_.shared_k) inputs.k.slc = inputs.k.win = inputs.k.cmp;
  if (problem_.shared_v) inputs.v.slc = inputs.v.win = inputs.v.cmp;

  const DeviceBuffer slots_array(device_, slots), lengths_array(device_, lengths), cu_q_array(device_, cu_q);
  const DeviceBuffer cmp = table(CachePart::cmp), slc = table(CachePart::slc), win = table(CachePart::win),
                     summaries = table(CachePart::summaries);
  const auto on_device = [&](CachePart part, const DeviceBuffer& array) {
    return pages_.on_device(part, static_cast<const std::int32_t*>(array.data()));
  };
  DecodeBatch batch;
  batch.sequences = static_cast<std::int64_t>(pieces.size());
  batch.tokens = count;
  batch.num_slots = pages_.slots();
  batch.slots = static_cast<const std::int32_t*>(slots_array.data());
  batch.lengths = static_cast<const std::int32_t*>(lengths_array.data());
  batch.cu_q = static_cast<const std::int32_t*>(cu_q_array.data());
  batch.cmp = on_device(CachePart::cmp, cmp);
  batch.slc = on_device(CachePart::slc, slc);
  batch.win = on_device(CachePart::win, win);
  batch.summaries = on_device(CachePart::summaries, summaries);

  out_ = DeviceBuffer(
      device_, static_cast<std::size_t>(count * config.num_q_heads * config.head_dim_v) * size_of(setting_.dtype));
  selected_ = poisoned_indices(device_, count * config.num_kv_heads * config.select_count);
  log_sum_exp_ = DeviceBuffer(
      device_, static_cast<std::size_t>(3 * count * config.num_q_heads) * size_of(accumulate_dtype(setting_.dtype)));
  workspace_.poison();
  const DecodeOutputs outputs{view_of(out_, setting_.dtype, {count, config.num_q_heads, config.head_dim_v}),
                              static_cast<std::int32_t*>(selected_.data()), log_sum_exp_.data()};
  decoder_.prepare(batch, schedule_.data(), {});
  decoder_.step(inputs, cache_, outputs, workspace_.data(), {});
  device_.synchronize({});

  for (const std::int64_t bytes : decoder_.bytes_per_step(count)) result_.expected_bytes += bytes;
  store(tokens);
  for (const Piece& piece : pieces) lengths_[static_cast<std::size_t>(piece.document)] = piece.begin + piece.count;
}

void DecodeServer::store(const std::vector<std::int64_t>& tokens) {
  const Values out = out_.values(setting_.dtype), sums = log_sum_exp_.values(accumulate_dtype(setting_.dtype));
  const std::vector<std::int32_t> selected = selected_.indices();
  const std::size_t heads = static_cast<std::size_t>(problem_.config.num_q_heads), count = tokens.size();
  for (std::size_t i = 0; i < count; ++i) {
    const auto token = static_cast<std::size_t>(tokens[i]);
    bool differs = false;
    const auto write = [&](const auto& from, std::size_t source, auto& to, std::size_t destination, std::size_t width) {
      for (std::size_t c = 0; c < width; ++c) {
        differs |=
            stored_[token] && std::memcmp(&to[destination + c], &from[source + c], sizeof(from[source + c])) != 0;
        to[destination + c] = from[source + c];
      }
    };
    const std::size_t out_width = out.size() / count, selected_width = selected.size() / count;
    write(out, i * out_width, result_.out, token * out_width, out_width);
    write(selected, i * selected_width, result_.selected, token * selected_width, selected_width);
    for (std::size_t branch = 0; branch < 3; ++branch)
      write(sums, (branch * count + i) * heads, result_.log_sum_exp, (token * 3 + branch) * heads, heads);
    stored_[token] = true;
    ++result_.rows;
    result_.differences += differs;
  }
}

}  // namespace cpnsa::test
