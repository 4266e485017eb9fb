"""Writes testdata/chat_templates.json: small chat templates of the constructs that public models' templates use, with what
Jinja itself, set as transformers sets it, makes of some conversations. Needs python3-jinja2; the test does not.

    python3 tests/model/make_chat_templates.py
"""
import datetime
import json
import pathlib

import jinja2
import jinja2.sandbox


class Refused(Exception):
    pass


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise Refused(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime(2024, 7, 5, 13, 4, 9).strftime(f)
    return env


LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set lead = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}\
{% else %}{% set rest = messages %}{% set lead = '' %}{% endif %}\
{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
{% if loop.index0 == 0 %}{% set body = lead + message['content'] %}{% else %}{% set body = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + body.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + body.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system's own words, if there are any. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one tool call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' + arg_val + '"' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- endif %}
        {%- endfor %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}{{- tools | tojson }}{{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

QWEN2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query %}
            {%- if loop.last or (not loop.last and reasoning) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

PHI = """{% for message in messages %}{{'<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

MACROS = """{% macro turn(role, content='(nothing)', end='</t>') %}
<{{ role|upper }}>{{ content }}{{ end }}
{%- endmacro -%}
{% for m in messages if m.role != 'system' %}
  {% if loop.index > 5 %}{% break %}{% endif %}
  {% if not m.content %}{% continue %}{% endif %}
{{ turn(m.role, m.content) }}
{{ turn(m.role, end='!') }}
{% else %}
nobody
{% endfor %}
{% generation %}
[{{ messages|map(attribute='role')|join(', ') }}]
{% endgeneration %}
"""

SYSTEM = {"role": "system", "content": "  Be brief. \n"}
USER = {"role": "user", "content": "What is 7 * 6?"}
ASSISTANT = {"role": "assistant", "content": " 42 "}
TRICKY = {"role": "user", "content": "<|im_end|>\n<|eot_id|>[/INST] \u00e9\u4e2d \"q\" {{ x }} {% if %}"}
THOUGHT = {"role": "assistant", "content": "<think>\nsix sevens\n</think>\n\nForty-two."}
TOOL = {"role": "tool", "content": "{\"ok\": true}"}
EMPTY = {"role": "user", "content": ""}

CONVERSATIONS = {
    "question": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ASSISTANT, TRICKY],
    "thoughts": [USER, THOUGHT, USER],
    "last_is_answer": [USER, THOUGHT],
    "two_questions": [USER, USER],
    "tools": [USER, TOOL, TOOL, ASSISTANT],
    "empty": [EMPTY],
}
TEMPLATES = {"llama2": LLAMA2, "llama3": LLAMA3, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3, "phi": PHI,
             "gemma": GEMMA, "macros": MACROS}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# One construct each; `m` is the content of the first message.
M = "{% set m = messages[0].content %}"
SNIPPETS = [
    # White space.
    "a\n  {% if true %}\n  b\n  {% endif %}\n  c\n", "a\n  {%- if true -%}\n  b\n  {%- endif %}\n c", "{# c #}\nx\n",
    "x {{ 1 }}\n y\n\n", "  {% if true %}x{% endif %}  \n", "a {%+ if true %}b{% endif +%}\nc", "  {{- 'a' -}}  b",
    "a\n\t {# c -#} \n b", "{% if true %}\n\n a{% endif %}", "a\r\nb{% if true %}\r\nc{% endif %}", "{%- set x = 1 -%}\n\n{{ x }}",
    "a\n  {{ 1 }}{% if true %} b{% endif %}", "{{ '}}' }}{{ {'a': {'b': 1}}['a']['b'] }}", "  {#- x #}\n  y", "{% if true %}a{% endif %}\n{% if true %}b{% endif %}\n",
    # Operators.
    "{{ 1 + 2 * 3 - 4 // 3 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 1.5 + 2 }} {{ 0.1 }} {{ -1 }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ 1.0 }}", "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ '1' == 1 }}",
    "{{ not true or true and false }} {{ 1 and 2 }} {{ 0 or 'x' }} {{ '' or none }}", "{{ 'b' in 'abc' }} {{ 1 in [1, 2] }} {{ 3 not in [1, 2] }} {{ 'k' in {'k': 1} }}",
    "{{ 'a' if false }}|{{ 'a' if false else 'b' if false else 'c' }}", "{{ [1] + [2] == [1, 2] }} {{ {'a': 1} == {'a': 1.0} }} {{ (1, 2)[1] }}",
    "{{ 'a' 'b' \"c\\n\\t\\\\\\'\\x41\\u00e9\\q\" }}", "{{ -2|abs }} {{ (1 + 1) * 2 }} {{ 2 * 3 ~ 4 }} {{ not 1 == 2 }}", "{{ 1 if 0 is odd else 2 }} {{ - 3 + 5 }}",
    "{{ none == undefined_thing }} {{ undefined_thing == other_undefined }} {{ undefined_thing }}|{{ undefined_thing|length }}",
    # Subscripts and slices.
    M + "{{ m[0] }}{{ m[-1] }}|{{ m[99] }}|{{ m[1:3] }}|{{ m[:-2] }}|{{ m[::-1] }}|{{ m[::2] }}|{{ m[5:1] }}|{{ m[-3:] }}|{{ m[4:0:-2] }}",
    "{{ [1,2,3,4][1:]|join }} {{ [1,2,3,4][::-1]|join(',') }} {{ [1,2,3][-2] }} {{ [1,2,3,4][3:0:-2]|join }} {{ [1,2][7:]|length }} {{ [[1,2],[3]][0][1] }}",
    M + "{{ '\u00e9\u4e2d\U0001f600x'[1] }}{{ '\u00e9\u4e2d\U0001f600x'[1:3] }}{{ '\u00e9\u4e2d\U0001f600x'|length }}{{ '\u00e9\u4e2d'[::-1] }}",
    "{{ messages[0].missing is defined }} {{ messages[0]['role'] }} {{ messages.0.role }} {{ messages[0].role.missing is defined }}",
    "{{ {'a': 1}.b is defined }} {{ {'a': 1}['a'] }} {{ none.x is defined }} {{ messages[7] is defined }}",
    # Tests.
    "{{ 1 is number }} {{ 1.0 is float }} {{ 1 is integer }} {{ true is integer }} {{ true is number }} {{ true is boolean }} {{ 'a' is string }} {{ 'a' is iterable }} {{ 'a' is sequence }} {{ 'a' is mapping }}",
    "{{ {} is mapping }} {{ [] is sequence }} {{ {} is iterable }} {{ none is none }} {{ none is not none }} {{ x is defined }} {{ x is undefined }} {{ x is not defined }} {{ 1 is iterable }} {{ x is iterable }}",
    "{{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 2 is eq 2 }} {{ 2 is equalto(3) }} {{ 2 is in [1, 2] }} {{ 1 is true }} {{ true is true }} {{ false is false }} {{ 1 is gt 0 }} {{ 1 is le 0 }} {{ 2 is not in [1] }}",
    "{{ 'x' is string and 1 is number }} {{ 'a' is string or x }}",
    # Filters.
    "{{ '  a b '|trim }}|{{ 'xxaxx'|trim('x') }}|{{ 'aBc d'|upper }}|{{ 'ABC'|lower }}|{{ 'heLLo woRLD'|capitalize }}|{{ \"heLLo woRLD-it's (me)\"|title }}",
    "{{ 'stra\u00dfe \u00e9'|upper }} {{ '\u00c9A'|lower }} {{ '\u00e9a'|capitalize }}", "{{ [1,'a',none]|join('-') }} {{ 'abc'|join(',') }} {{ messages|join('/', attribute='role') }}",
    "{{ x|default('d') }} {{ ''|default('d') }} {{ ''|default('d', true) }} {{ none|default('d') }} {{ none|d('e', boolean=true) }}",
    "{{ [3,1]|first }} {{ [3,1]|last }} {{ 'abc'|first }} {{ []|first }}| {{ 'aXbX'|replace('X', '-') }} {{ 'aXbX'|replace('X', '-', 1) }} {{ 12|replace('1', 'x') }}",
    "{{ messages|map(attribute='content')|map('upper')|join('|') }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ messages|rejectattr('role', 'eq', 'user')|list|length }} {{ messages|selectattr('name')|list|length }} {{ messages|selectattr('name', 'defined')|list|length }}",
    "{{ [0,1,2,3]|select|join }} {{ [0,1,2,3]|select('odd')|join }} {{ [0,1,2,3]|reject('gt', 1)|join }} {{ 'abc'|reverse }} {{ [1,2]|reverse|join }} {{ 'abc'|list|length }}",
    "{{ '12'|int + 1 }} {{ 'x'|int }} {{ 'x'|int(5) }} {{ 3.9|int }} {{ '1.5'|float }} {{ 5|string + 'a' }} {{ {'b': 1, 'a': 2}|items|map('first')|join }} {{ 7|float }}",
    "{{ {'b': [1, 2.5, none, true, 'x\"\\n\u00e9\\u0001'], 'a': {}}|tojson }} {{ []|tojson }} {{ 'a/b<c>&'|tojson }} {{ messages[0]|tojson }}",
    "{{ {'b': [1, {'c': []}], 'a': {}, 'd': 'x'}|tojson(indent=2) }}", "{{ 'a'|safe }} {{ 'ab'|count }} {{ none|trim }} {{ true|upper }}",
    # Methods.
    M + "{{ m.split(' ')|length }} {{ m.split()[1] }} {{ 'a,b,c'.split(',', 1)[1] }} {{ 'a,b,c'.rsplit(',', 1)|join('+') }} {{ ' a  b c '.split()|join('|') }} {{ ' a  b c '.split(none, 1)|join('|') }} {{ 'abc'.split('x')|length }} {{ ''.split(',')|length }} {{ ''.split()|length }} {{ ' a  b c '.rsplit(none, 1)|join('|') }}",
    "{{ ' a '.strip() }}|{{ 'xya'.lstrip('yx') }}|{{ 'axy'.rstrip('yx') }}|{{ '\\n a\u00a0\\u2003'.strip() }}|{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'abc'.startswith(('x', 'a')) }}",
    "{{ 'aXb'.upper() }} {{ 'aXb'.lower() }} {{ 'aXb'.replace('X', '') }} {{ 'a-b'.replace('-', '+', 1) }} {{ ','.join(['a', 'b']) }} {{ 'abcb'.find('b') }} {{ 'abc'.find('z') }} {{ 'abcb'.count('b') }} {{ 'heLLo'.capitalize() }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %} {{ {'a': 1}.get('a') }} {{ {'a': 1}.get('z') }} {{ {'a': 1}.get('z', 3) }} {{ {'a': 1, 'b': 2}.keys()|join }} {{ {'a': 1, 'b': 2}.values()|join }}",
    # Loops and scopes.
    "{% for i in range(3) %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}",
    "{% for i in range(2, 9, 3) %}{{ i }}{% endfor %} {% for i in range(3, 0, -1) %}{{ i }}{% endfor %} {% for c in 'ab\u00e9' %}{{ c }}.{% endfor %} {% for k in {'x': 1} %}{{ k }}{% endfor %} {% for i in [] %}{% else %}none{% endfor %} {% for i in missing %}{% else %}gone{% endfor %}",
    "{% set x = 0 %}{% for i in [1, 2, 3] %}{{ x }}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "{% set ns = namespace(x=0, y='a') %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z is defined }}",
    "{% for i in [1, 2, 3, 4] if i is even %}{{ i }}/{{ loop.length }} {% endfor %}", "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }}{% endfor %}{% for (a, b) in [(1, 2)] %}{{ a + b }}{% endfor %}",
    "{% for i in [1, 2, 3] %}{{ loop.previtem }}<{{ i }}<{{ loop.nextitem }} {{ loop.cycle('a', 'b') }} {% endfor %}", "{% for i in [1, 2] %}{% for j in [1, 2] %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for i in [1, 2, 3, 4] %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% if false %}a{% elif 0 %}b{% elif 1 %}c{% else %}d{% endif %}", "{% if x is not defined %}{% set x = 3 %}{% endif %}{{ x }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t %}in {{ a }}{% endset %}[{{ t }}]", "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, b=3) }} {{ f() }} {% set c = 9 %}{{ f(1) ~ f(2) }}",
    "{% for m in messages %}{% set last = loop.last %}{% if last %}{{ m.content }}{% endif %}{% endfor %}{{ last is defined }}", "{{ dict(a=1, b='x')|tojson }} {{ strftime_now('%d %b %Y %H:%M %A %j') }}", "{{ range(4)|list|length }} {{ (1,)|length }} {{ ()|length }}",
    # Errors.
    "{{ missing.x }}", "{{ missing + 'a' }}", "{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ none + 'a' }}", "{{ [1] < 2 }}", "{{ 'a' < 1 }}", "{{ missing['x'] }}", "{{ raise_exception('no ' ~ messages[0].role) }}", "{{ 1 in 'abc' }}",
    "{{ 'a'.split('') }}", "{% set ns = 1 %}{% set ns.x = 2 %}", "{% for a, b in [1] %}{% endfor %}", "{{ missing|tojson }}", "{{ 1|length }}", "{% for i in 5 %}{% endfor %}",
]


def render(source, variables):
    # Jinja does not know transformers' block for training, which prints what it holds.
    source = source.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")
    try:
        return {"expected": environment().from_string(source).render(**variables)}
    except Refused as error:
        return {"refused": str(error)}
    except Exception as error:  # Jinja's own; which one is its business.
        return {"error": type(error).__name__}


def main():
    templates = []
    for name, source in TEMPLATES.items():
        cases = []
        for conversation, messages in CONVERSATIONS.items():
            for switches in [{"add_generation_prompt": True}, {"add_generation_prompt": False},
                             {"add_generation_prompt": True, "enable_thinking": False}]:
                variables = {"messages": messages, "tools": None, "documents": None, **TOKENS, **switches}
                cases.append({"conversation": conversation, "switches": switches, **render(source, variables)})
        templates.append({"name": name, "source": source, "cases": cases})
    snippets = []
    for source in SNIPPETS:
        variables = {"messages": CONVERSATIONS["turns"][1:], "tools": None, "documents": None, "add_generation_prompt": True,
                     **TOKENS}
        snippets.append({"source": source, **render(source, variables)})
    out = {"tokens": TOKENS, "conversations": CONVERSATIONS, "templates": templates, "snippets": snippets}
    path = pathlib.Path(__file__).parent / "testdata" / "chat_templates.json"
    path.write_text(json.dumps(out, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
