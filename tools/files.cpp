#include "tools/files.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "cpnsa/error.hpp"

namespace cpnsa::tool {

void throw_file_error(const std::filesystem::path& path, int error, const char* doing, const char* expected) {
  throw ArgumentError(fmt::format("{}: found \"{}\" while {}, expected {}", path.string(),
                                  std::generic_category().message(error), doing, expected));
}

File::File(const std::filesystem::path& path, int flags, const char* expected)
    : path_(path), descriptor_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) throw_file_error(path, errno, "opening", expected);
}

File File::open(const std::filesystem::path& path) {
  File file(path, O_RDONLY | O_NONBLOCK, "a readable file");  // non-blocking: a pipe must not stop the command
  struct stat status {};
  if (::fstat(file.descriptor_, &status) != 0) throw_file_error(path, errno, "looking at it", "a readable file");
  if (!S_ISREG(status.st_mode))
    throw ArgumentError(fmt::format("{}: found a {}, expected a regular file", path.string(),
                                    S_ISDIR(status.st_mode) ? "folder" : "special file"));
  return file;
}

File File::open_to_write(const std::filesystem::path& path) {
  return {path, O_WRONLY, "a writable file"};
}

File File::create(const std::filesystem::path& path) {
  return {path, O_WRONLY | O_CREAT | O_EXCL, "to create a new file"};
}

File::File(File&& other) noexcept : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::uint64_t File::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) throw_file_error(path_, errno, "looking at it", "a file with a size");
  return static_cast<std::uint64_t>(status.st_size);
}

void File::read_at(void* destination, std::size_t bytes, std::uint64_t offset) const {
  auto* to = static_cast<std::byte*>(destination);
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t count = ::pread(descriptor_, to + done, bytes - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_file_error(path_, errno, "reading", "a readable file");
    if (count == 0)
      throw ArgumentError(fmt::format("{}: found the file's end at byte {}, expected at least {} bytes", path_.string(),
                                      offset + done, offset + bytes));
    done += static_cast<std::size_t>(count);
  }
}

void File::write_at(const void* source, std::size_t bytes, std::uint64_t offset) const {
  const auto* from = static_cast<const std::byte*>(source);
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t count = ::pwrite(descriptor_, from + done, bytes - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_file_error(path_, errno, "writing", "to write the whole file");
    done += static_cast<std::size_t>(count);
  }
}

void File::reserve(std::uint64_t bytes) const {
  if (bytes == 0) return;
  const int error = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(bytes));
  if (error != 0) throw_file_error(path_, error, fmt::format("reserving {} bytes", bytes).c_str(), "enough space");
}

void File::close() {
  if (::close(std::exchange(descriptor_, -1)) != 0)
    throw_file_error(path_, errno, "closing", "to write the whole file");
}

void replace_text(const std::filesystem::path& path, std::string_view text) {
  const std::filesystem::path hidden =
      path.parent_path() / fmt::format(".{}.cpnsa-{}", path.filename().string(), ::getpid());
  ::unlink(hidden.c_str());  // of a killed process with the same number
  try {
    File file = File::create(hidden);
    file.write_at(text.data(), text.size(), 0);
    file.close();
    if (::rename(hidden.c_str(), path.c_str()) != 0) throw_file_error(path, errno, "replacing it", "a writable file");
  } catch (...) {
    ::unlink(hidden.c_str());
    throw;
  }
}

std::string read_text(const std::filesystem::path& path, std::size_t max_bytes) {
  const File file = File::open(path);
  const std::uint64_t size = file.size();
  if (size > max_bytes)
    throw ArgumentError(fmt::format("{}: found {} bytes, expected at most {}", path.string(), size, max_bytes));
  std::string text(static_cast<std::size_t>(size), '\0');
  file.read_at(text.data(), text.size(), 0);
  return text;
}

}  // namespace cpnsa::tool
