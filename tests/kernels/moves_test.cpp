// Ops that move data: rows and blocks are copied or added, arrays are converted to another type.

#include <array>
#include <cmath>
#include <limits>

#include "tests/kernels/kernel_test.hpp"

namespace cpnsa::test {
namespace {

CPNSA_KERNEL_SUITE(Moves);

constexpr DType all_dtypes[] = {DType::f64, DType::f32, DType::bf16, DType::f16};

// Ranges of `rows` rows whose destinations do not overlap.
std::vector<RowRange> random_ranges(Random& random, std::int64_t rows) {
  std::vector<RowRange> ranges;
  for (std::int64_t row = 0; row < rows;) {
    const std::int64_t count = std::min(random.integer(1, 5), rows - row);
    if (random.chance(0.6)) ranges.push_back({random.integer(0, rows - count), row, count});
    row += count;
  }
  return ranges;
}

TEST_P(Moves, CopyRows) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    // Strides and widths are multiples of 2 bytes, the narrowest element, or of 16.
    const std::int64_t unit = seed % 2 ? 2 : 16, rows = random.integer(1, 40), width = unit * random.integer(1, 20);
    const std::int64_t source_stride = width + unit * random.integer(0, 3),
                       stride = width + unit * random.integer(0, 3);
    std::vector<std::byte> source(static_cast<std::size_t>(rows * source_stride));
    for (std::byte& byte : source) byte = static_cast<std::byte>(random.integer(0, 255));
    std::vector<std::byte> expected(static_cast<std::size_t>(rows * stride), std::byte{0xff});
    const std::vector<RowRange> ranges = random_ranges(random, rows);
    for (const RowRange& range : ranges)
      for (std::int64_t row = 0; row < range.count; ++row)
        std::copy_n(source.begin() + (range.source + row) * source_stride, width,
                    expected.begin() + (range.destination + row) * stride);
    const DeviceBuffer from(device(), source), to(device(), expected.size());
    const DeviceListBuffer<RowRange> list(device(), ranges);
    if (!ranges.empty())
      device().run(CopyRows{from.data(), to.data(), source_stride, stride, width, list.view()}, Stream{});
    ASSERT_EQ(to.read(), expected) << "rows, and nothing between or beside them";
  }
}

TEST_P(Moves, AddRows) {
  for (const DType dtype : {DType::f32, DType::f64})
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(std::string(name_of(dtype)) + ", seed " + std::to_string(seed));
      Random random(seed);
      const std::int64_t rows = random.integer(1, 40), width = random.integer(1, 20);
      const std::int64_t source_stride = width + random.integer(0, 3), stride = width + random.integer(0, 3);
      const Values source = round_to(dtype, random.normals(rows * source_stride));
      Values expected = round_to(dtype, random.normals(rows * stride));
      const DeviceBuffer from(device(), dtype, source), to(device(), dtype, expected);
      const std::vector<RowRange> ranges = random_ranges(random, rows);
      for (const RowRange& range : ranges)
        for (std::int64_t row = 0; row < range.count; ++row)
          for (std::int64_t c = 0; c < width; ++c) {
            double& element = expected[static_cast<std::size_t>((range.destination + row) * stride + c)];
            element =
                round_to(dtype, element + source[static_cast<std::size_t>((range.source + row) * source_stride + c)]);
          }
      const DeviceListBuffer<RowRange> list(device(), ranges);
      if (!ranges.empty())
        device().run(AddRows{from.data(), to.data(), source_stride, stride, width, dtype, list.view()}, Stream{});
      ASSERT_EQ(to.values(dtype), expected);
    }
}

struct Blocks {
  Blocks(const Config& config, std::int64_t block_count, Random& random) {
    for (std::int64_t block = 0; block < block_count; ++block)
      for (std::int64_t head = 0; head < config.num_kv_heads; ++head)
        if (random.chance(0.5)) list.push_back({block * config.select_block, static_cast<std::int32_t>(head), 0});
    for (std::size_t i = 0; i < list.size(); ++i)  // slots are in another order than blocks
      list[i].slot = static_cast<std::int32_t>(list.size() - 1 - i);
  }
  std::vector<BlockSlot> list;
};

// visit(element of the pool, element of k or v, whether it is a key)
template <class Visit>
void for_each_element(const Config& config, const std::vector<BlockSlot>& blocks, Visit visit) {
  const std::int64_t m = config.select_block, d_qk = config.head_dim_qk, d_v = config.head_dim_v;
  for (const BlockSlot& block : blocks)
    for (std::int64_t row = 0; row < m; ++row) {
      const std::int64_t at = (block.row + row) * config.num_kv_heads + block.group;
      for (std::int64_t c = 0; c < d_qk; ++c)
        visit(static_cast<std::size_t>(block.slot * m * (d_qk + d_v) + row * d_qk + c),
              static_cast<std::size_t>(at * d_qk + c), true);
      for (std::int64_t c = 0; c < d_v; ++c)
        visit(static_cast<std::size_t>(block.slot * m * (d_qk + d_v) + m * d_qk + row * d_v + c),
              static_cast<std::size_t>(at * d_v + c), false);
    }
}

std::vector<Config> block_shapes() {
  std::vector<Config> configs(3);
  configs[0].num_q_heads = configs[0].num_kv_heads = 3;
  configs[0].head_dim_qk = 5, configs[0].head_dim_v = 7;
  configs[0].select_block = configs[0].compress_block = configs[0].compress_stride = 6;
  configs[1].num_q_heads = configs[1].num_kv_heads = 2;
  configs[1].head_dim_qk = 192, configs[1].head_dim_v = 128;
  configs[2].num_q_heads = configs[2].num_kv_heads = 1;
  configs[2].head_dim_qk = configs[2].head_dim_v = 64;
  for (Config& config : configs) config.compressor = Compressor::mean;
  return configs;
}

TEST_P(Moves, PackBlocks) {
  for (const DType dtype : GetParam().dtypes)
    for (const Config& config : block_shapes()) {
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + config.describe());
      if (!supported(config, dtype)) continue;
      Random random(11);
      const std::int64_t rows = 4 * config.select_block;
      const Values k = round_to(dtype, random.normals(rows * config.num_kv_heads * config.head_dim_qk));
      const Values v = round_to(dtype, random.normals(rows * config.num_kv_heads * config.head_dim_v));
      const Blocks blocks(config, 4, random);
      Values expected(blocks.list.size() *
                      static_cast<std::size_t>(config.select_block * (config.head_dim_qk + config.head_dim_v)));
      for_each_element(config, blocks.list, [&](std::size_t pool, std::size_t element, bool key) {
        expected[pool] = key ? k[element] : v[element];
      });
      const DeviceBuffer from_k(device(), dtype, k), from_v(device(), dtype, v);
      const DeviceBuffer pool(device(), expected.size() * size_of(dtype));
      const DeviceListBuffer<BlockSlot> list(device(), blocks.list);
      PackBlocks arguments{};
      arguments.config = &config, arguments.dtype = dtype;
      arguments.k = from_k.data(), arguments.v = from_v.data(), arguments.pool = pool.data();
      arguments.blocks = list.view();
      device().run(arguments, Stream{});
      ASSERT_EQ(pool.values(dtype), expected);
    }
}

TEST_P(Moves, AddBlocks) {
  for (const DType dtype : GetParam().dtypes)
    for (const Config& config : block_shapes()) {
      const DType accumulate = accumulate_dtype(dtype);
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + config.describe());
      if (!supported(config, dtype)) continue;
      Random random(12);
      const std::int64_t rows = 4 * config.select_block;
      Values dk = round_to(accumulate, random.normals(rows * config.num_kv_heads * config.head_dim_qk));
      Values dv = round_to(accumulate, random.normals(rows * config.num_kv_heads * config.head_dim_v));
      const DeviceBuffer to_k(device(), accumulate, dk), to_v(device(), accumulate, dv);
      const Blocks blocks(config, 4, random);
      const Values pool =
          round_to(accumulate, random.normals(static_cast<std::int64_t>(blocks.list.size()) * config.select_block *
                                              (config.head_dim_qk + config.head_dim_v)));
      for_each_element(config, blocks.list, [&](std::size_t slot, std::size_t element, bool key) {
        double& sum = key ? dk[element] : dv[element];
        sum = round_to(accumulate, sum + pool[slot]);
      });
      const DeviceBuffer from(device(), accumulate, pool);
      const DeviceListBuffer<BlockSlot> list(device(), blocks.list);
      AddBlocks arguments{};
      arguments.config = &config, arguments.dtype = dtype;
      arguments.pool = from.data(), arguments.dk = to_k.data(), arguments.dv = to_v.data();
      arguments.blocks = list.view();
      device().run(arguments, Stream{});
      ASSERT_EQ(to_k.values(accumulate), dk);
      ASSERT_EQ(to_v.values(accumulate), dv);
    }
}

// Windows of three ranks; the rank under test reads what the others have. A block is needed or not, by random bits.
struct PulledCase {
  static constexpr std::int64_t blocks = 5, ranks = 3, group = 0;

  PulledCase(const Config& config, Random& random) : words(ranks, std::vector<std::uint32_t>(words_of(config))) {
    for (auto& of_rank : words)
      for (std::uint32_t& word : of_rank) word = static_cast<std::uint32_t>(random.integer(0, 0xffffffff));
    for (std::int64_t block = 0; block < blocks; ++block)
      for (std::int32_t rank = 1; rank < ranks; ++rank)
        if (random.chance(0.8))
          list.push_back({block, (blocks - 1 - block) * config.select_block, rank, static_cast<std::int32_t>(slots++)});
  }
  static std::size_t words_of(const Config& config) {
    return static_cast<std::size_t>((blocks * config.num_kv_heads + 31) / 32);
  }
  bool needed(const Config& config, std::int32_t rank, const PulledBlock& item) const {
    const auto bit = static_cast<std::size_t>(item.block * config.num_kv_heads + group);
    return (words[static_cast<std::size_t>(rank)][bit / 32] >> (bit % 32) & 1u) != 0;
  }
  static std::vector<BlockSlot> slot_of(const PulledBlock& item) {
    return {{item.row, static_cast<std::int32_t>(group), item.slot}};
  }

  std::vector<std::vector<std::uint32_t>> words;  ///< [ranks][words]
  std::vector<PulledBlock> list;
  std::int64_t slots = 0;
};

TEST_P(Moves, PullBlocks) {
  for (const DType dtype : GetParam().dtypes)
    for (const Config& config : block_shapes()) {
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + config.describe());
      if (!supported(config, dtype)) continue;
      Random random(15);
      const PulledCase pulled(config, random);
      const std::int64_t rows = PulledCase::blocks * config.select_block;
      std::vector<Values> k, v;
      std::vector<DeviceBuffer> windows;
      PullBlocks arguments{};
      for (std::size_t rank = 0; rank < PulledCase::ranks; ++rank) {
        k.push_back(round_to(dtype, random.normals(rows * config.num_kv_heads * config.head_dim_qk)));
        v.push_back(round_to(dtype, random.normals(rows * config.num_kv_heads * config.head_dim_v)));
        arguments.k.of[rank] = windows.emplace_back(device(), dtype, k.back()).data();
        arguments.v.of[rank] = windows.emplace_back(device(), dtype, v.back()).data();
      }
      Values expected = round_to(
          dtype, random.normals(pulled.slots * config.select_block * (config.head_dim_qk + config.head_dim_v)));
      const DeviceBuffer pool(device(), dtype, expected);
      int copied = 0;
      for (const PulledBlock& item : pulled.list) {
        if (!pulled.needed(config, 0, item)) continue;
        ++copied;
        const auto owner = static_cast<std::size_t>(item.rank);
        for_each_element(config, PulledCase::slot_of(item), [&](std::size_t slot, std::size_t element, bool key) {
          expected[slot] = key ? k[owner][element] : v[owner][element];
        });
      }
      ASSERT_GT(copied, 0);
      ASSERT_LT(copied, static_cast<int>(pulled.list.size())) << "the case leaves no block out";
      const DeviceListBuffer<std::uint32_t> needs(device(), pulled.words[0]);
      const DeviceListBuffer<PulledBlock> list(device(), pulled.list);
      arguments.config = &config, arguments.dtype = dtype;
      arguments.needs = needs.view().device, arguments.group = PulledCase::group;
      arguments.pool = pool.data(), arguments.blocks = list.view();
      device().run(arguments, Stream{});
      ASSERT_EQ(pool.values(dtype), expected) << "needed blocks, and no other slot";
    }
}

TEST_P(Moves, AddPulledBlocks) {
  for (const DType dtype : GetParam().dtypes)
    for (const Config& config : block_shapes()) {
      const DType accumulate = accumulate_dtype(dtype);
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + config.describe());
      if (!supported(config, dtype)) continue;
      Random random(16);
      const PulledCase pulled(config, random);
      const std::int64_t rows = PulledCase::blocks * config.select_block;
      Values dk = round_to(accumulate, random.normals(rows * config.num_kv_heads * config.head_dim_qk));
      Values dv = round_to(accumulate, random.normals(rows * config.num_kv_heads * config.head_dim_v));
      const DeviceBuffer to_k(device(), accumulate, dk), to_v(device(), accumulate, dv);
      std::vector<Values> pools;
      std::vector<DeviceBuffer> windows;
      std::vector<DeviceListBuffer<std::uint32_t>> needs;
      AddPulledBlocks arguments{};
      for (std::size_t rank = 0; rank < PulledCase::ranks; ++rank) {
        pools.push_back(round_to(
            accumulate, random.normals(pulled.slots * config.select_block * (config.head_dim_qk + config.head_dim_v))));
        arguments.pool.of[rank] = windows.emplace_back(device(), accumulate, pools.back()).data();
        arguments.needs.of[rank] = needs.emplace_back(device(), pulled.words[rank]).view().device;
      }
      int added = 0;
      for (const PulledBlock& item : pulled.list) {  // in the order of the list
        if (!pulled.needed(config, item.rank, item)) continue;
        ++added;
        const Values& pool = pools[static_cast<std::size_t>(item.rank)];
        for_each_element(config, PulledCase::slot_of(item), [&](std::size_t slot, std::size_t element, bool key) {
          double& sum = key ? dk[element] : dv[element];
          sum = round_to(accumulate, sum + pool[slot]);
        });
      }
      ASSERT_GT(added, 0);
      ASSERT_LT(added, static_cast<int>(pulled.list.size())) << "the case leaves no block out";
      const DeviceListBuffer<PulledBlock> list(device(), pulled.list);
      arguments.config = &config, arguments.dtype = dtype;
      arguments.group = PulledCase::group;
      arguments.dk = to_k.data(), arguments.dv = to_v.data(), arguments.blocks = list.view();
      device().run(arguments, Stream{});
      ASSERT_EQ(to_k.values(accumulate), dk);
      ASSERT_EQ(to_v.values(accumulate), dv);
    }
}

// Numbers halfway between two of a type, the largest and the smallest ones, and numbers that overflow or underflow.
Values difficult_numbers() {
  const double infinity = std::numeric_limits<double>::infinity();
  Values values{0.0,       -0.0,         1.0,           infinity, -infinity,   std::nan(""), 65504,
                65519.9,   65520,        65536,         1e-8,     -1e-8,       5.96e-8,      2.98e-8,
                0x1p-24,   0x1p-25,      0x3p-26,       0x1p-14,  0x1.ffcp-15, 1e38,         3.3895e38,
                3.3961e38, 3.4028234e38, -3.4028234e38, 0x1p-126, 0x1p-133,    0x1p-134,     0x3p-135};
  for (int bits = 0; bits < 8; ++bits)  // around half a unit in the last place of 8-bit and 11-bit significands
    for (const double unit : {0x1p-7, 0x1p-10}) {
      const double step = 1 + bits * unit;
      for (const double nudge : {0.0, 0x1p-20, -0x1p-20}) values.push_back(step + unit / 2 + nudge);
      values.push_back(-(step + unit / 2));
    }
  Random random(13);
  for (const double scale : {1.0, 1e-5, 1e4, 1e-38, 1e30})
    for (int i = 0; i < 40; ++i) values.push_back(scale * random.normal());
  return values;
}

TEST_P(Moves, ConvertRoundsToNearestEven) {
  for (const DType from : {DType::f32, DType::f64})
    for (const DType to : all_dtypes) {
      SCOPED_TRACE(std::string(name_of(from)) + " to " + std::string(name_of(to)));
      const Values source = round_to(from, difficult_numbers());
      const DeviceBuffer in(device(), from, source), out(device(), source.size() * size_of(to));
      const std::array all{Conversion{out.data(), in.data(), static_cast<std::int64_t>(source.size())}};
      device().run(Convert{to, from, all}, Stream{});
      const Values found = out.values(to), expected = round_to(to, source);
      for (std::size_t i = 0; i < source.size(); ++i) {
        if (std::isnan(source[i])) {
          EXPECT_TRUE(std::isnan(found[i]));
        } else {
          EXPECT_EQ(found[i], expected[i]) << "from " << source[i];
          EXPECT_EQ(std::signbit(found[i]), std::signbit(expected[i])) << "from " << source[i];
        }
      }
    }
}

// More arrays than one launch takes. Some are empty; lengths and addresses are not multiples of a pack.
TEST_P(Moves, ConvertTakesManyArrays) {
  constexpr std::int64_t room = 5000;
  Random random(14);
  Values source(static_cast<std::size_t>(room * 50));
  for (double& value : source) value = random.normal();
  for (const DType from : {DType::f32, DType::f64})
    for (const DType to : all_dtypes) {
      SCOPED_TRACE(std::string(name_of(from)) + " to " + std::string(name_of(to)));
      const Values numbers = round_to(from, source), rounded = round_to(to, numbers);
      const DeviceBuffer in(device(), from, numbers), out(device(), numbers.size() * size_of(to));
      std::vector<Conversion> arrays;
      Values expected = out.values(to);
      for (std::int64_t i = 0; i < 50; ++i) {
        const std::int64_t shift = i % 2 == 0 ? 0 : i % 7, count = i % 5 == 0 ? 0 : (i * 97) % (room - 7);
        const std::int64_t first = i * room + shift;
        arrays.push_back({static_cast<std::byte*>(out.data()) + static_cast<std::size_t>(first) * size_of(to),
                          static_cast<const std::byte*>(in.data()) + static_cast<std::size_t>(first) * size_of(from),
                          count});
        for (std::int64_t j = first; j < first + count; ++j)
          expected[static_cast<std::size_t>(j)] = rounded[static_cast<std::size_t>(j)];
      }
      device().run(Convert{to, from, arrays}, Stream{});
      const Values found = out.values(to);
      for (std::size_t i = 0; i < found.size(); ++i) {
        if (std::isnan(expected[i])) {
          ASSERT_TRUE(std::isnan(found[i])) << "element " << i << " is nobody's, and was written";
        } else {
          ASSERT_EQ(found[i], expected[i]) << "element " << i;
        }
      }
    }
}

TEST_P(Moves, MemoryIsAlignedCopiedAndZeroed) {
  for (const std::size_t bytes : {1u, 255u, 256u, 100'000u}) {
    DeviceBuffer buffer(device(), bytes), other(device(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 256, 0u);
    EXPECT_NO_THROW(device().check_pointer(buffer.data(), bytes, "buffer"));
    device().fill_zero(buffer.data(), bytes, Stream{});
    device().copy(other.data(), buffer.data(), bytes, Stream{});
    EXPECT_EQ(other.read(), std::vector<std::byte>(bytes));
  }
}

}  // namespace
}  // namespace cpnsa::test
