# A room is one folder, one library target, one public include path.
#
# Each room's headers are reachable as "room/header.h" only through that room's own target: the include path is a folder that holds
# nothing but a link to the room. A room that does not name another in DEPENDS cannot include its headers, so the direction of the
# design's dependencies is enforced by the compiler.
add_library(perigee_flags INTERFACE)
target_compile_options(perigee_flags INTERFACE -Wall -Wextra -Werror -Wno-unused-parameter -Wno-restrict  # -Wrestrict: g++ 12 is wrong about std::string (PR 105651)
 
  $<$<CONFIG:Release>:-O2> -fno-omit-frame-pointer -fvisibility=hidden)
if(PERIGEE_SANITIZE)
  target_compile_options(perigee_flags INTERFACE -fsanitize=${PERIGEE_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(perigee_flags INTERFACE -fsanitize=${PERIGEE_SANITIZE})
  if(PERIGEE_SANITIZE STREQUAL "thread")
    # g++ 12 warns that TSan does not model fences; ours are all inside libraries.
    target_compile_options(perigee_flags INTERFACE -Wno-tsan)
  endif()
endif()

function(perigee_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;DEPENDS;LIBS" ${ARGN})
  set(include_dir ${CMAKE_BINARY_DIR}/rooms/${name})
  file(MAKE_DIRECTORY ${include_dir})
  file(CREATE_LINK ${CMAKE_CURRENT_SOURCE_DIR} ${include_dir}/${name} SYMBOLIC)
  set(room_targets ${ROOM_DEPENDS})
  list(TRANSFORM room_targets PREPEND perigee_)
  if(ROOM_SOURCES)
    add_library(perigee_${name} STATIC ${ROOM_SOURCES})
    target_include_directories(perigee_${name} PUBLIC ${include_dir})
    target_link_libraries(perigee_${name} PUBLIC ${room_targets} ${ROOM_LIBS} PRIVATE perigee_flags)
  else()
    add_library(perigee_${name} INTERFACE)
    target_include_directories(perigee_${name} INTERFACE ${include_dir})
    target_link_libraries(perigee_${name} INTERFACE ${room_targets} ${ROOM_LIBS})
  endif()
endfunction()

# perigee_test(room name [LIBS ...]): tests/<room>/<name>_test.cc, one program, registered with ctest as <room>/<name>.
function(perigee_test room name)
  cmake_parse_arguments(TEST "" "TIMEOUT" "LIBS" ${ARGN})
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 120)
  endif()
  set(target ${room}_${name}_test)
  add_executable(${target} ${name}_test.cc)
  target_link_libraries(${target} PRIVATE ${TEST_LIBS} GTest::gmock GTest::gtest_main perigee_flags)
  target_compile_definitions(${target} PRIVATE
    PERIGEE_SOURCE_DIR="${CMAKE_SOURCE_DIR}" PERIGEE_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${room}/${name} COMMAND ${target})
  if(PERIGEE_SANITIZE)
    math(EXPR TEST_TIMEOUT "${TEST_TIMEOUT} * 5")
  endif()
  set_tests_properties(${room}/${name} PROPERTIES TIMEOUT ${TEST_TIMEOUT})
  if(PERIGEE_SANITIZE STREQUAL "thread")
    # UCX patches the memory-mapping functions at run time (for its registration cache), which ThreadSanitizer does not survive.
    set_tests_properties(${room}/${name} PROPERTIES ENVIRONMENT
      "UCX_MEM_EVENTS=n;TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp")
  endif()
endfunction()
