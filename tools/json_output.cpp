#include "tools/json_output.hpp"

#include <fmt/format.h>

#include <system_error>

namespace cpnsa::tool {

ReportFile::~ReportFile() {
  std::error_code ignored;
  if (!written_) std::filesystem::remove(file_.path(), ignored);
}

void ReportFile::write(const std::string& text) {
  replace_text(file_.path(), text);
  written_ = true;
}

void print_report(const JsonOutput& output, const std::string& text, const std::string& json) {
  const bool to_file = output.wanted && !output.file.empty();
  if (to_file) ReportFile(output.file).write(json);
  fmt::print("{}", output.wanted && !to_file ? json : text);
}

}  // namespace cpnsa::tool
