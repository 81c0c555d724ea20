# SPDX-License-Identifier: MIT
# Copies of the worker's, the client's and the base library whose calls out can be made to fail: see worker/failing.h.
if(TARGET pgpt_worker AND TARGET pgpt_cli AND CMAKE_OBJCOPY)
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
  foreach(library pgpt_base pgpt_worker pgpt_client pgpt_cli)
    set(failing_copy "${CMAKE_CURRENT_BINARY_DIR}/lib${library}_failing.a")
    add_custom_command(OUTPUT "${failing_copy}" DEPENDS ${library} "${failing_list}"
      COMMAND "${CMAKE_OBJCOPY}" --redefine-syms=${failing_list} $<TARGET_FILE:${library}> "${failing_copy}")
    add_custom_target(${library}_failing DEPENDS "${failing_copy}")
  endforeach()
  add_library(failing OBJECT worker/failing.c)
  target_link_libraries(failing PRIVATE pgpt_worker)

  # pgpt_failing_test(name libraries...): tests/unit/test_<name>.c on copies of these, which the linker meets before the
  # libraries themselves.
  function(pgpt_failing_test name)
    list(TRANSFORM ARGN REPLACE "(.+)" "${CMAKE_CURRENT_BINARY_DIR}/lib\\1_failing.a" OUTPUT_VARIABLE copies)
    list(TRANSFORM ARGN APPEND _failing OUTPUT_VARIABLE made)
    pgpt_unit_test(${name} ${copies} ${ARGN})
    target_sources(test_${name} PRIVATE $<TARGET_OBJECTS:failing>)
    add_dependencies(test_${name} ${made})
  endfunction()

  foreach(part failing_calls recorder intake pg_session)
    pgpt_failing_test(${part} pgpt_worker)
  endforeach()
  foreach(part no_memory admission)
    pgpt_failing_test(${part} pgpt_worker pgpt_base)
  endforeach()
  target_link_libraries(test_admission PRIVATE "${AVRO_LIBRARY}") # its allocator is replaced there
  pgpt_failing_test(client_failing_calls pgpt_cli pgpt_client)
endif()
