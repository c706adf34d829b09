#include "tools/output_folder.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "cpnsa/error.hpp"
#include "tools/replacement.hpp"

namespace cpnsa::tool {
namespace {

namespace fs = std::filesystem;

constexpr const char* writable = "an output folder that can be written";

fs::path without_trailing_slash(const fs::path& path) {
  const fs::path normal = fs::absolute(path).lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

void create_folder(const fs::path& path) {
  if (::mkdir(path.c_str(), 0777) != 0) throw_file_error(path, errno, "creating it", writable);
}

fs::path hidden_name(const std::string& name) {
  return fmt::format(".{}.cpnsa-{}", name, ::getpid());
}

}  // namespace

OutputFolder::OutputFolder(const fs::path& target) : target_(without_trailing_slash(target)) {
  std::error_code error;
  const bool something_is_there = fs::symlink_status(target_, error).type() != fs::file_type::not_found;
  if (something_is_there && error) throw_file_error(target_, error.value(), "looking at it", writable);
  target_exists_ = fs::is_directory(target_, error);
  if (something_is_there && !target_exists_)
    throw ArgumentError(fmt::format("{}: found something that is no folder, expected {}", target_.string(), writable));

  try {
    if (!target_exists_) create_parents();
    create_unfinished();
  } catch (...) {
    remove_unfinished();
    throw;
  }
}

OutputFolder::~OutputFolder() {
  if (!committed_) remove_unfinished();
}

void OutputFolder::create_parents() {
  std::vector<fs::path> missing;
  for (fs::path parent = target_.parent_path(); !fs::exists(parent); parent = parent.parent_path())
    missing.push_back(parent);
  std::reverse(missing.begin(), missing.end());
  for (const fs::path& parent : missing) {
    create_folder(parent);
    created_parents_.push_back(parent);
  }
}

// Files of a killed run are not removed, because its process id may equal this one's. Inside the target where that is a
// mount point, or where nothing can be created next to it.
void OutputFolder::create_unfinished() {
  if (!target_exists_) return create_hidden(target_.parent_path() / hidden_name(target_.filename().string()));
  target_ = fs::canonical(target_);
  replaces_whole_ = can_be_replaced(target_);
  if (replaces_whole_) {
    try {
      return create_hidden(target_.parent_path() / hidden_name(target_.filename().string()));
    } catch (const ArgumentError&) {
      replaces_whole_ = false;
    }
  }
  create_hidden(target_ / fmt::format(".cpnsa-{}", ::getpid()));
}

void OutputFolder::create_hidden(const fs::path& stem) {
  std::error_code ignored;  // an error is reported when it is created
  fs::path hidden = stem;
  for (int attempt = 1; fs::exists(fs::symlink_status(hidden, ignored)); ++attempt)
    hidden = fmt::format("{}-{}", stem.string(), attempt);
  if (::mkdir(hidden.c_str(), 0777) != 0) throw_file_error(target_, errno, "creating a folder for its files", writable);
  unfinished_ = hidden;
}

// A folder with the name of a file would make commit() fail half-way.
void OutputFolder::check(const std::string& file_name) const {
  std::error_code ignored;  // a path that cannot be read is not a folder
  const fs::path place = target_ / file_name;
  if (target_exists_ && fs::is_directory(fs::symlink_status(place, ignored)))
    throw ArgumentError(fmt::format("{}: found a folder, expected a file or nothing", place.string()));
}

void OutputFolder::add(const std::string& file_name) {
  check(file_name);
  files_.push_back(file_name);
}

void OutputFolder::remove_unfinished() noexcept {
  std::error_code ignored;  // there is already an error to report
  if (!unfinished_.empty()) fs::remove_all(unfinished_, ignored);
  for (auto parent = created_parents_.rbegin(); parent != created_parents_.rend(); ++parent)
    fs::remove(*parent, ignored);
}

void OutputFolder::add_array(const std::string& file_name, const NpyArray& array) {
  add(file_name);
  File file = File::create(unfinished_ / file_name);
  const std::string header = array.header();
  file.reserve(header.size() + array.elements() * size_of(array.type));
  file.write_at(header.data(), header.size(), 0);
  file.close();
}

void OutputFolder::add_text(const std::string& file_name, std::string_view text) {
  add(file_name);
  File file = File::create(unfinished_ / file_name);
  file.write_at(text.data(), text.size(), 0);
  file.close();
}

void OutputFolder::commit(const std::vector<std::string>& stale_names) {
  std::vector<std::string> removed;
  for (const std::string& name : stale_names)
    if (std::find(files_.begin(), files_.end(), name) == files_.end()) removed.push_back(name);
  if (!target_exists_) {
    rename_to(unfinished_, target_);
  } else if (!replaces_whole_ || !replace_folder(unfinished_, target_, removed)) {
    replace_files(unfinished_, target_, files_, removed);
  }
  committed_ = true;
}

void write_elements(const File& file, const NpyArray& array, std::int64_t first, std::int64_t count, const void* data) {
  const std::size_t element = size_of(array.type);
  file.write_at(data, static_cast<std::size_t>(count) * element,
                array.header().size() + static_cast<std::uint64_t>(first) * element);
}

}  // namespace cpnsa::tool
