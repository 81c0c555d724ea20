# SPDX-License-Identifier: MIT
# A copy of the worker's library whose calls out can be made to fail: see worker/failing.h.
if(TARGET pgpt_worker AND CMAKE_OBJCOPY)
  set(failing_calls "${CMAKE_CURRENT_SOURCE_DIR}/worker/failing.c")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${failing_calls}")
  file(STRINGS "${failing_calls}" failing_lines REGEX "^CALL\\(")
  set(failing_names "")
  foreach(line IN LISTS failing_lines)
    string(REGEX MATCH "^CALL\\([^,]*, ([A-Za-z_]+)" line "${line}")
    string(APPEND failing_names "${CMAKE_MATCH_1} failing_${CMAKE_MATCH_1}\n")
  endforeach()
  set(failing_list "${CMAKE_CURRENT_BINARY_DIR}/failing.txt")
  file(CONFIGURE OUTPUT "${failing_list}" CONTENT "${failing_names}" @ONLY)
  set(failing_copy "${CMAKE_CURRENT_BINARY_DIR}/libpgpt_worker_failing.a")
  add_custom_command(OUTPUT "${failing_copy}" DEPENDS pgpt_worker "${failing_list}"
    COMMAND "${CMAKE_OBJCOPY}" --redefine-syms=${failing_list} $<TARGET_FILE:pgpt_worker> "${failing_copy}")
  add_custom_target(failing_copy DEPENDS "${failing_copy}")
  add_library(failing OBJECT worker/failing.c)
  target_link_libraries(failing PRIVATE pgpt_worker)

  # pgpt_failing_test(name): tests/unit/test_<name>.c on that copy, which the linker meets before the library itself.
  function(pgpt_failing_test name)
    pgpt_unit_test(${name} "${failing_copy}" pgpt_worker)
    target_sources(test_${name} PRIVATE $<TARGET_OBJECTS:failing>)
    add_dependencies(test_${name} failing_copy)
  endfunction()

  foreach(part no_memory failing_calls recorder intake pg_session)
    pgpt_failing_test(${part})
  endforeach()
endif()
