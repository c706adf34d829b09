#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>

namespace cpnsa::test {

/// A file in memory's folder that holds the bytes of the latest input, for parsers that read files.
inline std::filesystem::path input_file(const std::uint8_t* data, std::size_t size) {
  static const std::filesystem::path path = [] {
    const std::filesystem::path memory = "/dev/shm";
    std::error_code error;
    const auto folder = std::filesystem::is_directory(memory, error) ? memory : std::filesystem::temp_directory_path();
    return folder / ("cpnsa-fuzz-" + std::to_string(::getpid()));
  }();
  static const struct Removed {
    ~Removed() {
      std::error_code ignored;
      std::filesystem::remove(path, ignored);
    }
  } removed;
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  return path;
}

}  // namespace cpnsa::test
