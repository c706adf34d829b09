#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/names.hpp"
#include "tools/doctor_facts.hpp"
#include "tools/doctor_links.hpp"

namespace cpnsa::tool {

enum class Severity { warning, serious };
constexpr auto names_of(Severity) {
  return std::to_array<std::string_view>({"warning", "serious"});
}

struct Fault {
  Severity severity;
  std::vector<int> ranks;
  std::string problem;  ///< "found ..., expected ..."
  std::string remedy;   ///< what to do
};

/// All faults of the ranks' facts, serious ones first.
std::vector<Fault> faults_of(const std::vector<RankFacts>& ranks);

/// All faults of the measured links. Links within a host are compared with each other, and links between hosts.
std::vector<Fault> faults_of(const std::vector<Link>& links);

bool is_serious(const std::vector<Fault>& faults);

}  // namespace cpnsa::tool
