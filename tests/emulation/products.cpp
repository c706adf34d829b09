#include "tests/emulation/products.hpp"

namespace emulation {
namespace {

constexpr int depth = 16;  // of every product

// Rows of 128 bytes: the three bits above choose how the eight 16-byte units of a row are exchanged.
std::uint32_t swizzled(std::uint32_t address) {
  return address ^ (address >> 7 & 7) << 4;
}

// The eight neighbours at an address that is a multiple of 16.
void read_unit(float (&to)[8], std::uint32_t address, const float* values) {
  std::uint16_t bits[8];
  std::memcpy(bits, ThreadBlock::pointer_to(swizzled(address)), sizeof bits);
  for (int i = 0; i < 8; ++i) to[i] = values[bits[i]];
}

std::uint16_t half_of(std::uint32_t word, int which) {
  return static_cast<std::uint16_t>(word >> 16 * which);
}

// The four registers of a lane hold rows lane / 4 and that + 8, columns 2 (lane % 4) and the next, then those + 8.
int row_of(int lane, int i) {
  return lane / 4 + i % 2 * 8;
}
int column_of(int lane, int i) {
  return lane % 4 * 2 + i / 2 * 8;
}

void add_rows(float (&a)[16][depth], int lane, const std::uint32_t* registers, const float* values) {
  for (int i = 0; i < 4; ++i)
    for (int which = 0; which < 2; ++which)
      a[row_of(lane, i)][column_of(lane, i) + which] = values[half_of(registers[i], which)];
}

struct LoadMatrices {
  std::uint32_t* registers;
  std::uint32_t address;
};

struct Multiply {
  float* d;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

// One product of a warp: 16 of the warpgroup's 64 rows.
void compute(const std::array<const Product*, warp_threads>& lanes, int first_row) {
  const Product& product = *lanes[0];
  float a[16][depth], unit[8];
  if (product.first_in_registers) {
    for (int lane = 0; lane < warp_threads; ++lane)
      add_rows(a, lane, lanes[static_cast<std::size_t>(lane)]->rows.data(), product.values);
  } else {
    const Operand operand = Operand::unpacked(product.first);
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < depth; k += 8) {
        const int r = first_row + row;
        read_unit(unit, operand.at(r / 8 * 1024 + r % 8 * 128 + k * 2), product.values);
        std::copy(unit, unit + 8, a[row] + k);
      }
  }
  const Operand operand = Operand::unpacked(product.second);
  std::vector<float> b(static_cast<std::size_t>(depth * product.columns));  // [depth, columns]
  if (product.first_in_registers) {                                         // then the second's rows run across the sum
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < product.columns; n += 8) {
        read_unit(unit, operand.at(n / 64 * operand.leading + k / 8 * 1024 + k % 8 * 128 + n % 64 * 2), product.values);
        std::copy(unit, unit + 8, b.begin() + k * product.columns + n);
      }
  } else {
    for (int n = 0; n < product.columns; ++n)
      for (int k = 0; k < depth; k += 8) {
        read_unit(unit, operand.at(n / 8 * 1024 + n % 8 * 128 + k * 2), product.values);
        for (int i = 0; i < 8; ++i) b[static_cast<std::size_t>((k + i) * product.columns + n)] = unit[i];
      }
  }
  std::vector<float> sums(static_cast<std::size_t>(product.columns));
  for (int row = 0; row < 16; ++row) {
    std::fill(sums.begin(), sums.end(), 0.f);
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < product.columns; ++column)
        sums[static_cast<std::size_t>(column)] += a[row][k] * b[static_cast<std::size_t>(k * product.columns + column)];
    for (int column = 0; column < product.columns; ++column) {
      const Product& owner = *lanes[static_cast<std::size_t>(row % 8 * 4 + column % 8 / 2)];
      float& sum = owner.sums[column / 8 * 4 + row / 8 * 2 + column % 2];
      sum = (owner.accumulate ? sum : 0.f) + sums[static_cast<std::size_t>(column)];
    }
  }
}

struct Finish {
  Thread* thread;
};

}  // namespace

void load_matrices(std::uint32_t (&r)[4], std::uint32_t address, bool transposed) {
  LoadMatrices own{r, address};
  ThreadBlock& block = ThreadBlock::current();
  if (address % 16 != 0) block.fail("ldmatrix of an address that is not aligned to 16");
  block.meet_warp(transposed ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, own, [transposed](const auto& lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::uint16_t rows[8][8];
      for (int row = 0; row < 8; ++row)
        std::memcpy(rows[row], ThreadBlock::pointer_to(lanes[static_cast<std::size_t>(matrix * 8 + row)]->address), 16);
      for (int lane = 0; lane < warp_threads; ++lane) {
        const int row = lane / 4, column = lane % 4 * 2;
        const std::uint16_t low = transposed ? rows[column][row] : rows[row][column];
        const std::uint16_t high = transposed ? rows[column + 1][row] : rows[row][column + 1];
        lanes[static_cast<std::size_t>(lane)]->registers[matrix] = low | static_cast<std::uint32_t>(high) << 16;
      }
    }
  });
}

void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1, const float* values) {
  Multiply own{d, a, {b0, b1}};
  ThreadBlock::current().meet_warp("mma", 0xffffffffu, own, [values](const auto& lanes) {
    float rows[16][depth], columns[depth][8];
    for (int lane = 0; lane < warp_threads; ++lane) {
      const Multiply& from = *lanes[static_cast<std::size_t>(lane)];
      add_rows(rows, lane, from.a, values);
      for (int i = 0; i < 4; ++i)
        columns[lane % 4 * 2 + i % 2 + i / 2 * 8][lane / 4] = values[half_of(from.b[i / 2], i % 2)];
    }
    for (int row = 0; row < 16; ++row) {
      float sums[8] = {};
      for (int k = 0; k < depth; ++k)
        for (int column = 0; column < 8; ++column) sums[column] += rows[row][k] * columns[k][column];
      for (int column = 0; column < 8; ++column)
        lanes[static_cast<std::size_t>(row % 8 * 4 + column / 2)]->d[row / 8 * 2 + column % 2] += sums[column];
    }
  });
}

void enqueue(const Product& product) {
  ThreadBlock::current().thread().products.open.push_back(product);
}

void finish_products(std::size_t pending) {
  ThreadBlock& block = ThreadBlock::current();
  Finish own{&block.thread()};
  block.meet_warp("wgmma.wait_group", 0xffffffffu, own, [&](const auto& lanes) {
    const int first_row = lanes[0]->thread->number / warp_threads % 4 * 16;
    while (lanes[0]->thread->products.committed.size() > pending) {
      const std::size_t count = lanes[0]->thread->products.committed.front().size();
      for (std::size_t i = 0; i < count; ++i) {
        std::array<const Product*, warp_threads> products{};
        for (std::size_t lane = 0; lane < products.size(); ++lane) {
          const auto& groups = lanes[lane]->thread->products.committed;
          if (groups.empty() || groups.front().size() != count)
            block.fail("the lanes of a warp enqueued different products");
          products[lane] = &groups.front()[i];
          if (products[lane]->first != products[0]->first || products[lane]->second != products[0]->second ||
              products[lane]->accumulate != products[0]->accumulate)
            block.fail("the lanes of a warp enqueued products of different operands");
        }
        compute(products, first_row);
      }
      for (const auto* lane : lanes) {
        auto& groups = lane->thread->products.committed;
        groups.erase(groups.begin());
      }
    }
  });
  block.meet_warpgroup("wgmma.wait_group");
}

}  // namespace emulation
