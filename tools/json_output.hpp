#pragma once

#include <filesystem>
#include <string>

#include "tools/files.hpp"
#include "tools/options.hpp"

namespace cpnsa::tool {

/// A report's file: made at once, so that an existing one is refused before any work, and removed unless it was
/// written.
class ReportFile {
 public:
  explicit ReportFile(const std::filesystem::path& path) : file_(File::create(path)) {}
  ~ReportFile();
  ReportFile(const ReportFile&) = delete;
  ReportFile& operator=(const ReportFile&) = delete;
  void write(const std::string& text);

 private:
  File file_;
  bool written_ = false;
};

/// Prints a report: its text, its JSON, or the text and the JSON in a file, as -J says.
void print_report(const JsonOutput& output, const std::string& text, const std::string& json);

}  // namespace cpnsa::tool
