# SPDX-License-Identifier: MIT
if(TARGET pgpt_worker)
  foreach(module engines ledger ledger_metadata duplicates assignment suspects delivery_model settle settle_records stream takeover scheduler log metrics health dead_letter control config recorder_batch kafka_client topics)
    pgpt_unit_test(${module} pgpt_worker)
  endforeach()

  target_link_options(test_suspects PRIVATE -Wl,--wrap=rd_kafka_message_destroy) # its messages are no client's

  # On a PostgreSQL of their own, with the migrations deployed.
  add_executable(test_recorder_store unit/test_recorder_store.c)
  set_target_properties(test_recorder_store PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_link_libraries(test_recorder_store PRIVATE pgpt_worker PkgConfig::CMOCKA)
  add_test(NAME recorder_store
    COMMAND "${CMAKE_SOURCE_DIR}/migrations/test" $<TARGET_FILE:test_recorder_store>)

  # The program, on a mock cluster.
  if(TARGET pgpt-worker)
    pgpt_unit_test(worker pgpt_worker)
    target_compile_definitions(test_worker PRIVATE PGPT_WORKER="$<TARGET_FILE:pgpt-worker>")
    add_dependencies(test_worker pgpt-worker)
  endif()

  # The worker against the engine alone, without brokers; see its first lines.
  if(TARGET pgpt_engine)
    add_executable(worker_mock EXCLUDE_FROM_ALL bench/worker_mock.c)
    set_target_properties(worker_mock PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
    target_link_libraries(worker_mock PRIVATE pgpt_worker)
  endif()
  add_test(NAME error_paths COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/unit/check_errors")
endif()
