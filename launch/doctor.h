// The parts of `lamina doctor`: what this machine is, and what it does when measured.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launch/doctor_report.h"
#include "launch/process.h"

namespace lamina::doctor {

// ---- doctor_machine.cpp: nothing is run ----
void report_build(Report& report);
void report_processor(Report& report);
void report_memory(Report& report);
void report_gpus(Report& report);
void report_libraries(Report& report);
void report_limits(Report& report);
void report_folder(Report& report, const std::string& topic, const std::filesystem::path& folder, bool measure);

// ---- doctor_ranks.cpp: collective over the job ----
// Every rank's text, on every rank.
std::vector<std::string> gather_texts(comm::Communicator& comm, const std::string& text);
std::string cores_text();  // that this process may use: "0-3,8"
void report_ranks(Report& report, World& world, comm::Communicator* gpus, Device device);
void measure_ranks(Report& report, World& world, comm::Communicator& comm, Device device);

// ---- doctor_measure.cpp ----
void measure_compute(Report& report, Device device);
// Which way bf16 products go here, and so which precision trains quicker on the CPU.
void report_precision(Report& report, bool measure);

std::string bytes_text(double bytes);  // "23.4 GiB"

}  // namespace lamina::doctor
