-- The tables of the reference (one-api, commit 8df4a26) as its ORM makes them in PostgreSQL, indexes included;
-- columns that billing never touches are left out of users and channels, which only makes their rows smaller.
drop schema if exists reference cascade;
create schema reference;

create table reference.users (
    id            bigserial primary key,
    username      text unique,
    "group"       varchar(32) default 'default',
    status        bigint default 1,
    quota         bigint default 0,
    used_quota    bigint default 0,
    request_count bigint default 0
);

create table reference.tokens (
    id              bigserial primary key,
    user_id         bigint,
    key             char(48) unique,
    status          bigint default 1,
    name            text,
    created_time    bigint,
    accessed_time   bigint,
    expired_time    bigint default -1,
    remain_quota    bigint default 0,
    unlimited_quota boolean default false,
    used_quota      bigint default 0,
    models          text,
    subnet          text default ''
);
create index idx_tokens_name on reference.tokens (name);

create table reference.channels (
    id         bigserial primary key,
    name       text,
    used_quota bigint default 0
);

create table reference.logs (
    id                  bigserial primary key,
    user_id             bigint,
    created_at          bigint,
    type                bigint,
    content             text,
    username            text default '',
    token_name          text default '',
    model_name          text default '',
    quota               bigint default 0,
    prompt_tokens       bigint default 0,
    completion_tokens   bigint default 0,
    channel_id          bigint,
    request_id          text default '',
    elapsed_time        bigint default 0,
    is_stream           boolean default false,
    system_prompt_reset boolean default false
);
create index idx_logs_user_id on reference.logs (user_id);
create index idx_created_at_type on reference.logs (created_at, type);
create index index_username_model_name on reference.logs (model_name, username);
create index idx_logs_token_name on reference.logs (token_name);
create index idx_logs_model_name on reference.logs (model_name);
create index idx_logs_channel_id on reference.logs (channel_id);
